//! People with certificates of their own, who speak the real protocol, try again through other nodes, and remember what
//! they were told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use chrono::Utc;
use quinn::Endpoint;
use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use tokio::io::AsyncReadExt;
use tokio::time::{Instant, sleep, timeout};
use zdap_proto::connect::connect;
use zdap_proto::control::{CallError, call};
use zdap_proto::frame::{self, REPLY_CAP, REQUEST_CAP};
use zdap_proto::identity::{Identity, Subject};
use zdap_proto::message::{Answer, CloneState, CloneView, Request, TunnelHello, TunnelReply};
use zdap_proto::name::{CloneId, RequestId, UserName};
use zdap_proto::refusal::Refusal;
use zdap_proto::transport::{Close, Purpose, client_endpoint_on};

use crate::plan::{LASTING, PEOPLE};
use crate::world::{Machine, World, YEARS};

/// All who use the cluster, and what they were told.
pub(crate) struct People {
    world: Arc<World>,
    people: Vec<Person>,
    ledger: Mutex<Ledger>,
}

struct Person {
    name: UserName,
    identity: Identity,
    endpoint: Endpoint,
}

/// What people asked for, and what they were told.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// Every request that was ever made, whatever came of it, and whose it is.
    pub(crate) requests: BTreeMap<RequestId, UserName>,
    /// Which machines were asked, and how often their nodes had lost their memory by then.
    pub(crate) asked: BTreeMap<RequestId, Vec<(usize, usize)>>,
    pub(crate) told: Vec<Told>,
    /// Clones that somebody asked to destroy, whatever came of it.
    pub(crate) given_back: BTreeSet<CloneId>,
    /// Clones that somebody was told are destroyed.
    pub(crate) destroyed: BTreeSet<CloneId>,
    /// What was wrong at once.
    pub(crate) wrong: Vec<String>,
}

/// Somebody was told that they have a clone.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub(crate) owner: UserName,
    pub(crate) request_id: RequestId,
    pub(crate) clone: CloneView,
    /// Which machine has it, and how many disks that one had lost when the clone was asked for.
    pub(crate) machine: usize,
    pub(crate) losses: usize,
}

/// Why somebody has no answer.
pub(crate) enum Unanswered {
    Refused(Refusal),
    /// No connection, or it was lost, or it took too long.
    Lost(String),
}

impl People {
    pub(crate) fn new(world: &Arc<World>) -> Arc<Self> {
        let people = (0..=PEOPLE).map(|index| {
            let name: UserName = format!("person-{index}").parse().unwrap();
            // The last one is the admin.
            let subject = match index == PEOPLE {
                true => Subject::Admin(name.clone()),
                false => Subject::User(name.clone()),
            };
            let octet = u8::try_from(index + 1).unwrap();
            let address = SocketAddr::from((Ipv4Addr::new(10, 0, 1, octet), 50_000));
            Person {
                name,
                identity: world.ca.identity(&subject, YEARS, Utc::now()).unwrap(),
                endpoint: client_endpoint_on(world.network.bind(address)).unwrap(),
            }
        });
        Arc::new(Self {
            world: Arc::clone(world),
            people: people.collect(),
            ledger: Mutex::default(),
        })
    }

    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap()
    }

    pub(crate) fn name(&self, person: usize) -> &UserName {
        &self.people[person].name
    }

    /// Asks for a clone through a node, once.
    pub(crate) async fn attach_once(
        &self,
        person: usize,
        node: usize,
        mut rng: StdRng,
    ) -> Result<CloneView, String> {
        let owner = &self.people[person].name;
        let request_id: RequestId = format!("{:032x}", rng.random::<u128>()).parse().unwrap();
        match self.ask(person, node, &order(LASTING, &request_id, 0)).await {
            Ok(Answer::Created { clone, .. }) => {
                let losses: Vec<_> = self.world.machines.iter().map(Machine::losses).collect();
                self.note(owner.clone(), request_id, clone.clone(), &losses).await;
                Ok(clone)
            }
            Ok(other) => Err(format!("{other:?}")),
            Err(reason) => Err(reason.to_string()),
        }
    }

    /// Asks for a clone of a resource until there is one, or an answer that another try would not change; gives up in the
    /// end. Returns whether there is one.
    pub(crate) async fn attach(&self, person: usize, resource: &str, mut rng: StdRng) -> bool {
        let owner = &self.people[person].name;
        let request_id: RequestId = format!("{:032x}", rng.random::<u128>()).parse().unwrap();
        self.ledger().requests.insert(request_id.clone(), owner.clone());
        let deadline = Instant::now() + PATIENCE;
        let mut attempt = 0;
        let losses: Vec<_> = self.world.machines.iter().map(Machine::losses).collect();
        let who = format!("{owner} {}", &request_id.as_str()[..6]);
        while Instant::now() < deadline {
            let node = rng.random_range(0..self.world.machines.len());
            let asked = (node, self.world.machines[node].lapses());
            self.ledger()
                .asked
                .entry(request_id.clone())
                .or_default()
                .push(asked);
            self.world
                .say(format_args!("{who} asks node-{node} for a clone of {resource}"));
            match self
                .ask(person, node, &order(resource, &request_id, attempt))
                .await
            {
                Ok(Answer::Created { clone, .. }) => {
                    self.world.say(format_args!(
                        "{who} is told by node-{node} of {} on {}",
                        clone.id, clone.node
                    ));
                    self.note(owner.clone(), request_id, clone, &losses).await;
                    return true;
                }
                Ok(other) => {
                    self.wrong(format!("{who}: asked for a clone and got {other:?}"));
                    return false;
                }
                Err(Unanswered::Refused(refusal)) if !refusal.kind.is_retryable() => {
                    self.world
                        .say(format_args!("{who} is refused by node-{node}: {refusal}"));
                    return false;
                }
                Err(Unanswered::Refused(refusal)) => {
                    self.world
                        .say(format_args!("{who} is put off by node-{node}: {refusal}"));
                }
                Err(Unanswered::Lost(reason)) => {
                    self.world
                        .say(format_args!("{who} has no answer from node-{node}: {reason}"));
                }
            }
            attempt += 1;
            sleep(PAUSE).await;
        }
        self.world.say(format_args!("{who} gives up"));
        false
    }

    /// Notes what somebody was told of, and looks whether it is so.
    async fn note(&self, owner: UserName, request_id: RequestId, clone: CloneView, losses: &[usize]) {
        let mut machines = self.world.machines.iter();
        let Some(machine) = machines.position(|machine| machine.name == clone.node) else {
            return self.wrong(format!("there is no {}", clone.node));
        };
        let losses = losses[machine];
        let records = self.world.machines[machine].records().await;
        let is_there = records
            .iter()
            .any(|record| record.id == clone.id && record.state == CloneState::Ready);
        if !is_there && clone.expires_at.is_none() && losses == self.world.machines[machine].losses() {
            self.wrong(format!("{owner} is told of {}, which is not there", clone.id));
        }
        let told = Told {
            owner,
            request_id,
            clone,
            machine,
            losses,
        };
        self.ledger().told.push(told);
    }

    /// Lists somebody's clones through a node; returns also how many nodes were not heard.
    pub(crate) async fn list(
        &self,
        person: usize,
        node: usize,
    ) -> Result<(Vec<CloneView>, usize), Unanswered> {
        let request = Request::ListClones {
            resource: None,
            all_owners: false,
        };
        let Answer::Clones { clones, silent } = self.ask(person, node, &request).await? else {
            self.wrong(format!("node-{node} answers something else than a list"));
            return Ok((Vec::new(), 0));
        };
        let name = &self.people[person].name;
        for clone in clones.iter().filter(|clone| &clone.owner != name) {
            self.wrong(format!(
                "{name} is shown {}, which is {}'s",
                clone.id, clone.owner
            ));
        }
        Ok((clones, silent.len()))
    }

    /// Lists somebody's clones through any node.
    pub(crate) async fn look(&self, person: usize, mut rng: StdRng) {
        let node = rng.random_range(0..self.world.machines.len());
        let name = &self.people[person].name;
        match self.list(person, node).await {
            Ok((clones, silent)) => self.world.say(format_args!(
                "{name} sees {} clones at node-{node}, {silent} nodes are silent",
                clones.len()
            )),
            Err(reason) => self
                .world
                .say(format_args!("{name} sees nothing at node-{node}: {reason}")),
        }
    }

    /// Gives one of somebody's clones back, trying until the answer comes.
    pub(crate) async fn destroy(&self, person: usize, mut rng: StdRng) {
        let name = self.people[person].name.clone();
        let Some(told) = self.one_of(person, &mut rng) else {
            return;
        };
        let clone = told.clone.id;
        self.ledger().given_back.insert(clone.clone());
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let node = rng.random_range(0..self.world.machines.len());
            let request = Request::DestroyClone { clone: clone.clone() };
            match self.ask(person, node, &request).await {
                Ok(_) => {
                    self.world
                        .say(format_args!("{name} is told by node-{node} that {clone} is gone"));
                    self.ledger().destroyed.insert(clone);
                    return;
                }
                Err(reason) => self.world.say(format_args!(
                    "{name} cannot give {clone} back through node-{node}: {reason}"
                )),
            }
            sleep(PAUSE).await;
        }
    }

    /// Says something to the database of one of somebody's clones, through any node.
    pub(crate) async fn query(&self, person: usize, mut rng: StdRng) {
        let name = self.people[person].name.clone();
        let Some(told) = self.one_of(person, &mut rng) else {
            return;
        };
        let node = rng.random_range(0..self.world.machines.len());
        let clone = &told.clone.id;
        match self.reach(person, node, clone).await {
            Ok(()) => self
                .world
                .say(format_args!("{name} has reached {clone} through node-{node}")),
            Err(reason) => self.world.say(format_args!(
                "{name} has not reached {clone} through node-{node}: {reason}"
            )),
        }
    }

    /// Says something to the database of a clone through a node, and makes sure that it is this clone's that answers.
    pub(crate) async fn reach(&self, person: usize, node: usize, clone: &CloneId) -> Result<(), Unanswered> {
        let Person {
            identity, endpoint, ..
        } = &self.people[person];
        let address = self.world.machines[node].address.to_string();
        let lost = |error: &dyn std::fmt::Display| Unanswered::Lost(error.to_string());
        let talk = async {
            let connection = connect(endpoint, identity, &address, Purpose::Tunnel)
                .await
                .map_err(|error| lost(&error))?;
            let (mut send, mut receive) = connection.open_bi().await.map_err(|error| lost(&error))?;
            frame::write(&mut send, &hello(clone), REQUEST_CAP)
                .await
                .map_err(|error| lost(&error))?;
            match frame::read(&mut receive, REPLY_CAP).await {
                Ok(TunnelReply::Open) => {}
                Ok(TunnelReply::Refused(refusal)) => return Err(Unanswered::Refused(refusal)),
                Err(error) => return Err(lost(&error)),
            }
            send.write_all(SAID).await.map_err(|error| lost(&error))?;
            send.finish().map_err(|error| lost(&error))?;
            // Not by quinn's own `read_to_end`, which miscounts a stream whose beginning was read in order.
            let mut back = Vec::new();
            let mut rest = AsyncReadExt::take(&mut receive, 1024);
            rest.read_to_end(&mut back).await.map_err(|error| lost(&error))?;
            Close::Done.connection(&connection, "done");
            Ok(back)
        };
        let back = timeout(ATTEMPT, talk)
            .await
            .map_err(|_| Unanswered::Lost("too slow".to_owned()))??;
        let expected = [format!("zdap-{clone}\n").as_bytes(), SAID].concat();
        if expected.starts_with(&back) && back.len() < expected.len() {
            return Err(Unanswered::Lost("it ended early".to_owned()));
        }
        if back != expected {
            let back = String::from_utf8_lossy(&back);
            self.wrong(format!("behind {clone} at node-{node} somebody says {back:?}"));
        }
        Ok(())
    }

    /// Has a node emptied, or not any more, as the admin.
    pub(crate) async fn drain(&self, node: usize, is_draining: bool) -> bool {
        match self.ask(PEOPLE, node, &Request::Drain { is_draining }).await {
            Ok(_) => true,
            Err(reason) => {
                self.world
                    .say(format_args!("node-{node} cannot be told to drain: {reason}"));
                false
            }
        }
    }

    /// Asks a node something, once.
    pub(crate) async fn ask(
        &self,
        person: usize,
        node: usize,
        request: &Request,
    ) -> Result<Answer, Unanswered> {
        let Person {
            identity, endpoint, ..
        } = &self.people[person];
        let address = self.world.machines[node].address.to_string();
        let asked = async {
            let connection = connect(endpoint, identity, &address, Purpose::Control)
                .await
                .map_err(|error| Unanswered::Lost(error.to_string()))?;
            let answer = call(&connection, request, |_| {}).await;
            Close::Done.connection(&connection, "done");
            answer.map_err(|error| match error {
                CallError::Refused(refusal) => Unanswered::Refused(refusal),
                error @ (CallError::Lost(_) | CallError::Misunderstood(_)) => {
                    Unanswered::Lost(zdap_proto::refusal::chain(&error))
                }
            })
        };
        timeout(ATTEMPT, asked)
            .await
            .unwrap_or_else(|_| Err(Unanswered::Lost("too slow".to_owned())))
    }

    /// Returns one of the clones that somebody was told of and has not given back.
    fn one_of(&self, person: usize, rng: &mut StdRng) -> Option<Told> {
        let ledger = self.ledger();
        let name = &self.people[person].name;
        let mine: Vec<_> = ledger
            .told
            .iter()
            .filter(|told| &told.owner == name && !ledger.given_back.contains(&told.clone.id))
            .collect();
        mine.choose(rng).map(|told| Told::clone(told))
    }

    fn wrong(&self, what: String) {
        self.world.say(format_args!("WRONG: {what}"));
        self.ledger().wrong.push(what);
    }
}

impl std::fmt::Display for Unanswered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused(refusal) => write!(f, "{refusal}"),
            Self::Lost(reason) => f.write_str(reason),
        }
    }
}

fn order(resource: &str, request_id: &RequestId, attempt: u32) -> Request {
    Request::CreateClone {
        resource: resource.parse().unwrap(),
        snapshot: None,
        node: None,
        owner: None,
        request_id: request_id.clone(),
        attempt,
    }
}

fn hello(clone: &CloneId) -> TunnelHello {
    TunnelHello {
        clone: clone.clone(),
        on_behalf_of: None,
    }
}

/// How long somebody waits for one answer, ...
const ATTEMPT: Duration = Duration::from_secs(12);
/// ... between two tries ...
const PAUSE: Duration = Duration::from_millis(300);
/// ... and altogether.
pub(crate) const PATIENCE: Duration = Duration::from_secs(45);
const SAID: &[u8] = b"select 1";
