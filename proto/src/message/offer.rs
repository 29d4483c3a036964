//! How nodes compare places for a clone, and what they tell people of it.

use serde::{Deserialize, Serialize};

use crate::name::NodeName;

/// How loaded a node would be with one more clone.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Offered {
    /// The largest share of what it has that would be taken: 1 is all of it.
    pub load: f64,
    /// What that is a share of.
    pub bottleneck: Bottleneck,
    /// The share of the clones alone, of as many as are sensible for its size: 1 is all of them. Nodes compare places by
    /// this, and by what `load` has above a half.
    pub clones: f64,
}

/// What a node would run out of first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bottleneck {
    /// Room in its pool.
    Pool,
    /// Memory.
    Memory,
    /// Processor.
    Processor,
    /// The number of clones that are sensible for its size.
    Clones,
}

/// A node that was considered for a clone, and what came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Considered {
    /// Which.
    pub node: NodeName,
    /// How loaded it would be, as far as the asked node knew; none for one that was out of the question.
    pub expected: Option<Offered>,
    /// How loaded it would be, as it says itself; none for one that was not asked.
    pub offered: Option<Offered>,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of considering a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The clone is there.
    Chosen,
    /// Another one was better.
    Passed,
    /// It cannot have it, for this reason.
    Refused(String),
}
