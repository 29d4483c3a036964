//! The fake: instances that are entries in a map, with faults on request.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio::net::TcpListener;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::task::AbortHandle;

use super::{Address, InstanceId, InstanceSpec, Observed, Runtime, RuntimeError, Started};
use crate::faults::Faults;

/// A machine's instances, as one life of a node sees them. The machine goes on when the node dies: see
/// [`Memory::reopened`].
#[derive(Debug, Clone)]
pub struct Memory {
    machine: Arc<Mutex<Machine>>,
    faults: Faults,
}

impl Memory {
    /// Returns a machine that has every image and no instance.
    pub fn new() -> Self {
        Self::with_faults(Faults::none())
    }

    /// The same, with faults.
    pub fn with_faults(faults: Faults) -> Self {
        Self {
            machine: Arc::default(),
            faults,
        }
    }

    /// Makes each instance listen on a port of loopback and send back what it is sent.
    pub fn with_echo(self) -> Self {
        self.machine().databases = Databases::OnLoopback;
        self
    }

    /// Gives each instance a [`Door`] in this process: whoever comes in is told the instance's name in a line, and then
    /// sent back what it sends.
    pub fn with_doors(self) -> Self {
        self.machine().databases = Databases::BehindDoors;
        self
    }

    /// Returns the same machine in the next life of the node.
    pub fn reopened(&self, faults: Faults) -> Self {
        Self {
            machine: Arc::clone(&self.machine),
            faults,
        }
    }

    /// Returns what goes wrong in this life.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Makes the databases of `image` never answer.
    pub fn never_ready(&self, image: &str) {
        self.machine().never_ready.insert(image.to_owned());
    }

    /// Takes [`Self::never_ready`] back.
    pub fn ready_again(&self, image: &str) {
        self.machine().never_ready.remove(image);
    }

    /// Makes the instances of `image` end while they start.
    pub fn exits_at_start(&self, image: &str) {
        self.machine().exits_at_start.insert(image.to_owned());
    }

    /// Takes `image` off the machine, until it is fetched.
    pub fn lose_image(&self, image: &str) {
        self.machine().missing_images.insert(image.to_owned());
    }

    /// Ends an instance behind the node's back.
    pub fn kill(&self, instance: &InstanceId) {
        self.machine().halt(instance);
    }

    fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn launch(&self, spec: &InstanceSpec) -> Result<Started, RuntimeError> {
        let databases = {
            let mut machine = self.machine();
            if machine.missing_images.contains(&spec.image) {
                return Err(RuntimeError::ImageMissing(spec.image.clone()));
            }
            machine.instances.entry(spec.id.clone()).or_default();
            if machine.exits_at_start.contains(&spec.image) {
                return Err(RuntimeError::Exited {
                    instance: spec.id.name(),
                    status: 1,
                    output: "FATAL: told to exit".to_owned(),
                });
            }
            machine.databases
        };
        let address = match self.running(&spec.id) {
            Some(address) => address,
            None => self.run(&spec.id, databases).await?,
        };
        if self.machine().never_ready.contains(&spec.image) {
            tokio::time::sleep(spec.ready_timeout).await;
            return Err(RuntimeError::NotReady {
                instance: spec.id.name(),
                waited: spec.ready_timeout,
                output: "LOG: told never to be ready".to_owned(),
            });
        }
        Ok(Started {
            address,
            start: Duration::ZERO,
            ready: Duration::ZERO,
        })
    }

    fn running(&self, id: &InstanceId) -> Option<Address> {
        self.machine().instances.get(id)?.address.clone()
    }

    async fn run(&self, id: &InstanceId, databases: Databases) -> Result<Address, RuntimeError> {
        let (address, server) = match databases {
            Databases::OnLoopback => {
                let (address, server) = serve_echo().await.map_err(|error| RuntimeError::Failed {
                    doing: format!("listen for {id}"),
                    reason: error.to_string(),
                })?;
                (address, Some(server))
            }
            Databases::BehindDoors => {
                let (door, server) = serve_at_door(id.name());
                (Address::Memory(door), Some(server))
            }
            Databases::Nowhere => (
                Address::Unix(PathBuf::from(format!("/memory/{id}/.s.PGSQL.5432"))),
                None,
            ),
        };
        let instance = Instance {
            address: Some(address.clone()),
            server,
        };
        self.machine().instances.insert(id.clone(), instance);
        Ok(address)
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Runtime for Memory {
    async fn start(&self, spec: &InstanceSpec) -> Result<Started, RuntimeError> {
        self.faults.call("start", self.launch(spec)).await
    }

    async fn stop(&self, instance: &InstanceId, _grace: Duration) -> Result<(), RuntimeError> {
        let effect = async {
            self.machine().halt(instance);
            Ok(())
        };
        self.faults.call("stop", effect).await
    }

    async fn remove(&self, instance: &InstanceId) -> Result<(), RuntimeError> {
        let effect = async {
            let mut machine = self.machine();
            machine.halt(instance);
            machine.instances.remove(instance);
            Ok(())
        };
        self.faults.call("remove", effect).await
    }

    async fn instances(&self) -> Result<Vec<Observed>, RuntimeError> {
        let effect = async {
            let machine = self.machine();
            let observed = machine.instances.iter().map(|(id, instance)| Observed {
                id: id.clone(),
                running: instance.address.clone(),
            });
            Ok(observed.collect())
        };
        self.faults.call("instances", effect).await
    }

    fn ends(&self) -> BoxStream<'_, InstanceId> {
        let (sender, receiver) = unbounded_channel();
        self.machine().ended.push(sender);
        stream::unfold(receiver, async |mut receiver| {
            Some((receiver.recv().await?, receiver))
        })
        .boxed()
    }

    async fn has_image(&self, image: &str) -> Result<bool, RuntimeError> {
        let effect = async { Ok(!self.machine().missing_images.contains(image)) };
        self.faults.call("has_image", effect).await
    }

    async fn fetch_image(
        &self,
        image: &str,
        progress: &(dyn Fn(String) + Send + Sync),
    ) -> Result<(), RuntimeError> {
        let effect = async {
            progress(format!("{image}: 100 %"));
            self.machine().missing_images.remove(image);
            Ok(())
        };
        self.faults.call("fetch_image", effect).await
    }
}

#[derive(Debug, Default)]
struct Machine {
    instances: BTreeMap<InstanceId, Instance>,
    missing_images: BTreeSet<String>,
    never_ready: BTreeSet<String>,
    exits_at_start: BTreeSet<String>,
    databases: Databases,
    ended: Vec<UnboundedSender<InstanceId>>,
}

impl Machine {
    fn halt(&mut self, id: &InstanceId) {
        if let Some(instance) = self.instances.get_mut(id) {
            *instance = Instance::default();
            self.ended.retain(|ended| ended.send(id.clone()).is_ok());
        }
    }
}

/// Where databases take connections.
#[derive(Debug, Clone, Copy, Default)]
enum Databases {
    /// They take none.
    #[default]
    Nowhere,
    OnLoopback,
    BehindDoors,
}

/// The way into a database of this process.
#[derive(Debug, Clone)]
pub struct Door {
    instance: String,
    visitors: UnboundedSender<DuplexStream>,
}

impl Door {
    /// Connects, if the database is still there.
    pub fn connect(&self) -> io::Result<DuplexStream> {
        let (ours, theirs) = tokio::io::duplex(DOOR_BYTES);
        match self.visitors.send(theirs) {
            Ok(()) => Ok(ours),
            Err(_) => Err(io::ErrorKind::ConnectionRefused.into()),
        }
    }
}

impl PartialEq for Door {
    fn eq(&self, other: &Self) -> bool {
        self.visitors.same_channel(&other.visitors)
    }
}

impl Eq for Door {}

impl fmt::Display for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.instance)
    }
}

#[derive(Debug, Default)]
struct Instance {
    address: Option<Address>,
    server: Option<AbortHandle>,
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Some(server) = &self.server {
            server.abort();
        }
    }
}

/// Listens on a port of loopback until aborted; the connections end with it.
async fn serve_echo() -> io::Result<(Address, AbortHandle)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = Address::Tcp(listener.local_addr()?);
    let server = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            while connections.try_join_next().is_some() {}
            connections.spawn(async move {
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await
            });
        }
    });
    Ok((address, server.abort_handle()))
}

/// Takes visitors until aborted; the connections end with it.
fn serve_at_door(instance: String) -> (Door, AbortHandle) {
    let (visitors, mut visits) = unbounded_channel::<DuplexStream>();
    let name = format!("{instance}\n");
    let server = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Some(stream) = visits.recv().await {
            while connections.try_join_next().is_some() {}
            let name = name.clone();
            connections.spawn(async move {
                let (mut read, mut write) = tokio::io::split(stream);
                write.write_all(name.as_bytes()).await?;
                tokio::io::copy(&mut read, &mut write).await?;
                write.shutdown().await
            });
        }
    });
    (Door { instance, visitors }, server.abort_handle())
}

/// What a connection in memory holds on its way.
const DOOR_BYTES: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpStream;

    use super::*;
    use crate::faults::Moment;
    use crate::runtime::tests::spec;

    #[tokio::test]
    async fn an_instance_sends_back_what_it_is_sent_until_it_is_stopped() {
        let (memory, spec) = (Memory::new().with_echo(), spec("orders-k3v9x2mq"));
        let Address::Tcp(address) = memory.start(&spec).await.unwrap().address else {
            panic!("an echo has a TCP address")
        };
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"select 1").await.unwrap();
        let mut answer = [0; 8];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"select 1");
        memory.stop(&spec.id, Duration::ZERO).await.unwrap();
        // The connection ends with the instance, in order or by a reset.
        assert!(matches!(stream.read(&mut answer).await, Ok(0) | Err(_)));
    }

    #[tokio::test]
    async fn behind_a_door_an_instance_says_its_name_and_nobody_is_there_once_it_is_removed() {
        let (memory, spec) = (Memory::new().with_doors(), spec("orders-k3v9x2mq"));
        let Address::Memory(door) = memory.start(&spec).await.unwrap().address else {
            panic!("it has a door")
        };
        let mut stream = door.connect().unwrap();
        stream.write_all(b"select 1").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).await.unwrap();
        assert_eq!(said, "zdap-orders-k3v9x2mq\nselect 1");
        memory.remove(&spec.id).await.unwrap();
        tokio::task::yield_now().await;
        assert!(door.connect().is_err());
    }

    #[tokio::test]
    async fn the_machine_outlives_a_node_that_stopped_in_the_middle_of_a_start() {
        let (faults, spec) = (Faults::none(), spec("orders-k3v9x2mq"));
        faults.stop_at_call(0, Moment::After);
        let memory = Memory::with_faults(faults);
        let started = tokio::time::timeout(Duration::from_millis(10), memory.start(&spec)).await;
        assert!(started.is_err());
        let next = memory.reopened(Faults::none());
        let observed = next.instances().await.unwrap();
        assert_eq!(observed.len(), 1);
        assert!(observed[0].running.is_some());
    }
}
