//! The fake: instances that are entries in a map, with faults on request.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
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
        self.machine().echo = true;
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
        let echo = {
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
            machine.echo
        };
        let address = match self.running(&spec.id) {
            Some(address) => address,
            None => self.run(&spec.id, echo).await?,
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

    async fn run(&self, id: &InstanceId, echo: bool) -> Result<Address, RuntimeError> {
        let (address, server) = match echo {
            true => {
                let (address, server) = serve_echo().await.map_err(|error| RuntimeError::Failed {
                    doing: format!("listen for {id}"),
                    reason: error.to_string(),
                })?;
                (address, Some(server))
            }
            false => (
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
    echo: bool,
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
async fn serve_echo() -> std::io::Result<(Address, AbortHandle)> {
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
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
