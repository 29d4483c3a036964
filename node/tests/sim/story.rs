//! One seed from its first packet to the last look: the nodes start, things go wrong while people work, all is put right,
//! and after a while of quiet everything must be as it should.

use std::cell::RefCell;
use std::fmt;
use std::sync::{Arc, Once};
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use zdap_node::storage::Capacity;

use crate::invariants::{self, Broken};
use crate::network::Weather;
use crate::people::People;
use crate::plan::{Event, Fault, Plan, TURMOIL, Work};
use crate::world::{IMAGE, World};

/// What came of a seed.
#[derive(Debug)]
pub(crate) struct Ending {
    pub(crate) seed: u64,
    /// A hash of all packets, and their number.
    pub(crate) trace: (u64, u64),
    /// How many clones people were told of.
    pub(crate) told: usize,
    pub(crate) broken: Vec<Broken>,
    pub(crate) log: Vec<String>,
}

impl Ending {
    /// Says what is broken and how to see it again; nothing if nothing is.
    pub(crate) fn report(&self) -> String {
        if self.broken.is_empty() {
            return String::new();
        }
        let lines = self.broken.iter().map(|broken| format!("    {broken}\n"));
        format!("just sim {}\n{}", self.seed, lines.collect::<String>())
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (hash, packets) = self.trace;
        write!(
            f,
            "seed {}: {packets} packets ({hash:016x}), {} clones",
            self.seed, self.told
        )
    }
}

/// Lives through a seed, in a runtime of its own.
pub(crate) fn live(seed: u64) -> Ending {
    notice_panics();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    let mut ending = runtime.block_on(story(seed));
    let panics = PANICS.with(|panics| std::mem::take(&mut *panics.borrow_mut()));
    ending.broken.extend(panics.into_iter().map(|panic| Broken {
        invariant: "no_task_panics",
        how: panic,
    }));
    ending
}

async fn story(seed: u64) -> Ending {
    let mut rng = StdRng::seed_from_u64(seed);
    let plan = Plan::draw(&mut rng);
    let world = World::new(&plan, &mut rng).await;
    world.say(format_args!(
        "seed {seed}: {} nodes, {:?}, calls take {:?}",
        plan.nodes, plan.weather, plan.call_latency
    ));
    for index in 0..plan.nodes {
        world.start(index);
    }
    let people = People::new(&world);
    let mut broken = Vec::new();
    if let Err(slow) = invariants::eventually(MEETING, || invariants::views_agree(&world)).await {
        broken.push(slow);
    }
    world.keep_state();

    world.say("things begin to go wrong");
    world.network.set_weather(plan.weather);
    let mut work = JoinSet::new();
    let mut faults = JoinSet::new();
    let began = Instant::now();
    let watch = plan
        .hides_nobody()
        .then(|| tokio::spawn(invariants::watch_for_false_downs(Arc::clone(&world))));
    for (at, event) in &plan.events {
        sleep_until(began + *at).await;
        match event {
            Event::Fault(fault) => drop(faults.spawn(go_wrong(Arc::clone(&world), fault.clone()))),
            Event::Work(item) => {
                drop(work.spawn(do_work(Arc::clone(&world), Arc::clone(&people), item.clone())));
            }
        }
    }
    sleep_until(began + TURMOIL).await;
    while faults.join_next().await.is_some() {}

    world.say("all is put right");
    world.network.heal();
    world.network.set_weather(Weather::FAIR);
    for (index, machine) in world.machines.iter().enumerate() {
        if let Some(faults) = machine.faults() {
            faults.calm();
        }
        world.start(index);
    }
    while work.join_next().await.is_some() {}
    if let Some(watch) = watch {
        watch.abort();
        if let Ok(seen) = watch.await {
            broken.push(seen);
        }
    }
    world.say("quiet begins");
    sleep(QUIET).await;
    broken.extend(invariants::look(&world, &people).await);
    let ending = Ending {
        seed,
        trace: world.network.trace(),
        told: people.ledger().told.len(),
        broken,
        log: world.log(),
    };
    world.network.end();
    ending
}

/// Lets a fault happen, until it is over.
async fn go_wrong(world: Arc<World>, fault: Fault) {
    world.say(format_args!("{fault:?}"));
    let host = |index: usize| world.machines[index].host();
    match fault {
        Fault::Cut { from, to, lasts } => {
            world.network.cut(host(from), host(to));
            sleep(lasts).await;
            world.network.mend(host(from), host(to));
        }
        Fault::Split { side, lasts } => {
            let others = (0..world.machines.len()).filter(|index| !side.contains(index));
            let pairs: Vec<_> = others
                .flat_map(|other| side.iter().flat_map(move |one| [(*one, other), (other, *one)]))
                .collect();
            for (from, to) in &pairs {
                world.network.cut(host(*from), host(*to));
            }
            sleep(lasts).await;
            for (from, to) in &pairs {
                world.network.mend(host(*from), host(*to));
            }
        }
        Fault::Crash {
            node,
            at,
            back_after,
            finds,
            again_at,
        } => {
            match (at, world.machines[node].faults()) {
                (Some((calls, moment)), Some(faults)) => {
                    faults.stop_after(calls, moment);
                    // Without work there may be no such call for long.
                    let waited = tokio::time::timeout(LONGEST_WAIT, faults.stopped()).await;
                    if waited.is_err() {
                        world.kill(node);
                    }
                }
                (None, _) | (_, None) => world.kill(node),
            }
            sleep(back_after).await;
            if !world.machines[node].runs() {
                world.leave(node, finds).await;
                world.say(format_args!("node-{node} finds {finds:?}"));
                world.start(node);
                if let (Some((calls, moment)), Some(faults)) = (again_at, world.machines[node].faults()) {
                    faults.stop_after(calls, moment);
                    if tokio::time::timeout(LONGEST_WAIT, faults.stopped()).await.is_ok() {
                        sleep(back_after).await;
                        world.start(node);
                    }
                }
            }
        }
        Fault::FailCall { node, after, moment } => {
            if let Some(faults) = world.machines[node].faults() {
                faults.fail_after(after, moment);
            }
        }
        Fault::DiskFull { node, lasts } => {
            let disk = world.machines[node].storage();
            let room = Capacity {
                free_bytes: 1 << 40,
                total_bytes: 1 << 40,
            };
            disk.set_capacity(Capacity {
                free_bytes: 0,
                ..room
            });
            sleep(lasts).await;
            disk.set_capacity(room);
        }
        Fault::NeverReady { node, lasts } => {
            let runtime = world.machines[node].runtime();
            runtime.never_ready(IMAGE);
            sleep(lasts).await;
            runtime.ready_again(IMAGE);
        }
        Fault::Stall { node, lasts } => {
            world.network.stall(host(node), Instant::now() + lasts);
            sleep(lasts).await;
        }
        Fault::StepClock { node, seconds } => {
            world.machines[node]
                .clock
                .step(chrono::TimeDelta::seconds(seconds));
        }
    }
}

async fn do_work(world: Arc<World>, people: Arc<People>, work: Work) {
    let rng = world.chance();
    match work {
        Work::Attach { person, resource } => {
            people.attach(person, resource, rng).await;
        }
        Work::List { person } => people.look(person, rng).await,
        Work::Destroy { person } => people.destroy(person, rng).await,
        Work::Query { person } => people.query(person, rng).await,
        Work::Drain { node, lasts } => {
            people.drain(node, true).await;
            sleep(lasts).await;
            // One that was told and whose answer was lost drains for good if this is not heard.
            while !people.drain(node, false).await {
                sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// Has panics of tasks noticed, which would go by unseen: whoever waits for a task may be gone.
fn notice_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.with(|panics| panics.borrow_mut().push(panic.to_string()));
            usual(panic);
        }));
    });
}

thread_local! {
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// All nodes know each other after this.
const MEETING: Duration = Duration::from_secs(10);
/// Longer than the longest pause between two passes that put things right, and than any reservation lasts.
const QUIET: Duration = Duration::from_secs(75);
/// For a call that may not come.
const LONGEST_WAIT: Duration = Duration::from_secs(15);
