//! What goes wrong and what people do meanwhile, drawn from a seed.

use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use zdap_node::faults::Moment;

use crate::network::Weather;

/// Everything that a seed decides before the first packet is sent.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) nodes: usize,
    pub(crate) weather: Weather,
    /// How long each call of storage and runtime takes.
    pub(crate) call_latency: Duration,
    /// In the order of their times, which count from the moment at which all nodes know each other.
    pub(crate) events: Vec<(Duration, Event)>,
}

/// Something that happens.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    Fault(Fault),
    Work(Work),
}

/// Something that goes wrong. Nodes are numbered from 0.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// Nothing goes from one node to the other, which does not hold the other way round.
    Cut {
        from: usize,
        to: usize,
        lasts: Duration,
    },
    /// Nothing goes between these nodes and all others.
    Split {
        side: Vec<usize>,
        lasts: Duration,
    },
    /// A node is killed, now or at a call of storage or runtime to come, and starts again. Its next life may end as
    /// early.
    Crash {
        node: usize,
        at: Option<(usize, Moment)>,
        back_after: Duration,
        finds: Finds,
        again_at: Option<(usize, Moment)>,
    },
    /// One call of storage or runtime fails.
    FailCall {
        node: usize,
        after: usize,
        moment: Moment,
    },
    DiskFull {
        node: usize,
        lasts: Duration,
    },
    /// Databases start and never answer.
    NeverReady {
        node: usize,
        lasts: Duration,
    },
    /// Packets to and from a node wait.
    Stall {
        node: usize,
        lasts: Duration,
    },
    StepClock {
        node: usize,
        seconds: i64,
    },
}

/// What a node that starts again finds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Finds {
    /// All that it had written.
    Everything,
    /// Its datasets, and the state directory as it was when the node first started.
    OldState,
    /// Its key, and nothing else.
    NothingButItsKey,
}

/// What somebody does. People are numbered from 0; they go to the nodes in the order of a number.
#[derive(Debug, Clone)]
pub(crate) enum Work {
    Attach {
        person: usize,
        resource: &'static str,
    },
    List {
        person: usize,
    },
    /// Gives back one of their clones, if there is any.
    Destroy {
        person: usize,
    },
    /// Says something to the database of one of their clones, if there is any.
    Query {
        person: usize,
    },
    Drain {
        node: usize,
        lasts: Duration,
    },
}

impl Fault {
    /// Whether it can make others think that a node is down.
    fn hides_a_node(&self) -> bool {
        match self {
            Self::Cut { .. } | Self::Split { .. } | Self::Crash { .. } | Self::Stall { .. } => true,
            Self::FailCall { .. }
            | Self::DiskFull { .. }
            | Self::NeverReady { .. }
            | Self::StepClock { .. } => false,
        }
    }
}

impl Plan {
    pub(crate) fn draw(rng: &mut StdRng) -> Self {
        let nodes = rng.random_range(2..=5);
        let weather = Weather {
            latency: (1, *[1, 3, 20].choose(rng).unwrap()),
            loss: *[0.0, 0.05, 0.2].choose(rng).unwrap(),
            doubled: *[0.0, 0.02].choose(rng).unwrap(),
            late: *[0.0, 0.05].choose(rng).unwrap(),
        };
        let call_latency = Duration::from_millis(*[0, 5, 60].choose(rng).unwrap());
        let mut events = Vec::new();
        for _ in 0..rng.random_range(0..=6) {
            let fault = fault(nodes, rng);
            events.push((moment_of(TURMOIL, rng), Event::Fault(fault)));
        }
        for _ in 0..rng.random_range(6..=18) {
            let work = work(nodes, rng);
            events.push((moment_of(TURMOIL, rng), Event::Work(work)));
        }
        events.sort_by_key(|(at, _)| *at);
        Self {
            nodes,
            weather,
            call_latency,
            events,
        }
    }

    /// Whether no node has a reason to think that another is down.
    pub(crate) fn hides_nobody(&self) -> bool {
        let hides = |(_, event): &(Duration, Event)| match event {
            Event::Fault(fault) => fault.hides_a_node(),
            Event::Work(_) => false,
        };
        self.weather.loss <= 0.05 && !self.events.iter().any(hides)
    }
}

fn fault(nodes: usize, rng: &mut StdRng) -> Fault {
    let node = rng.random_range(0..nodes);
    let lasts = moment_of(Duration::from_secs(20), rng);
    let moment = *[Moment::Before, Moment::After].choose(rng).unwrap();
    match rng.random_range(0..10) {
        0 => Fault::Cut {
            from: node,
            to: (node + rng.random_range(1..nodes)) % nodes,
            lasts,
        },
        1 => Fault::Split {
            side: (0..nodes).filter(|_| rng.random_bool(0.5)).collect(),
            lasts,
        },
        2..=4 => Fault::Crash {
            node,
            at: rng.random_bool(0.7).then(|| (rng.random_range(0..8), moment)),
            back_after: moment_of(Duration::from_secs(10), rng),
            finds: *[
                Finds::Everything,
                Finds::Everything,
                Finds::OldState,
                Finds::NothingButItsKey,
            ]
            .choose(rng)
            .unwrap(),
            again_at: rng.random_bool(0.3).then(|| (rng.random_range(0..8), moment)),
        },
        5 => Fault::FailCall {
            node,
            after: rng.random_range(0..8),
            moment,
        },
        6 => Fault::DiskFull { node, lasts },
        7 => Fault::NeverReady { node, lasts },
        8 => Fault::Stall { node, lasts },
        _ => Fault::StepClock {
            node,
            seconds: rng.random_range(-600..=600),
        },
    }
}

fn work(nodes: usize, rng: &mut StdRng) -> Work {
    let person = rng.random_range(0..PEOPLE);
    match rng.random_range(0..10) {
        0..=4 => Work::Attach {
            person,
            resource: if rng.random_bool(0.8) { LASTING } else { BRIEF },
        },
        5 => Work::List { person },
        6 | 7 => Work::Destroy { person },
        8 => Work::Query { person },
        _ => Work::Drain {
            node: rng.random_range(0..nodes),
            lasts: moment_of(Duration::from_secs(10), rng),
        },
    }
}

fn moment_of(span: Duration, rng: &mut StdRng) -> Duration {
    Duration::from_millis(rng.random_range(0..u64::try_from(span.as_millis()).unwrap()))
}

/// For so long things go wrong.
pub(crate) const TURMOIL: Duration = Duration::from_secs(30);
pub(crate) const PEOPLE: usize = 3;
/// A resource whose clones stay.
pub(crate) const LASTING: &str = "orders";
/// A resource whose clones live for [`LIFE`].
pub(crate) const BRIEF: &str = "brief";
pub(crate) const LIFE: Duration = Duration::from_secs(10);
