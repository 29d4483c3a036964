//! What a resource file can ask for and processes do not keep to: said once, not of each instance.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use crate::runtime::InstanceSpec;

/// The keys that have been warned of.
#[derive(Debug, Default)]
pub(super) struct Unenforced(Mutex<BTreeSet<&'static str>>);

impl Unenforced {
    /// Warns of each key that `spec` is the first to make use of.
    pub(super) fn warn_of(&self, spec: &InstanceSpec) {
        for key in self.first_used_by(spec) {
            tracing::warn!(
                instance = %spec.id,
                "`{key}` is not enforced: this node runs databases as plain processes; use `--runtime docker` to have \
                 it enforced"
            );
        }
    }

    fn first_used_by(&self, spec: &InstanceSpec) -> Vec<&'static str> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        [
            ("limits.cpus", spec.millicpus),
            ("limits.memory", spec.memory_bytes),
            ("docker.shm", spec.shm_bytes),
        ]
        .into_iter()
        .filter(|(key, amount)| amount.is_some() && known.insert(*key))
        .map(|(key, _)| key)
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::tests::spec;

    #[test]
    fn each_key_is_warned_of_when_it_is_first_used_and_never_again() {
        let limits = Unenforced::default();
        let mut spec = spec("orders-k3v9x2mq");
        assert!(limits.first_used_by(&spec).is_empty());
        spec.memory_bytes = Some(1 << 30);
        assert_eq!(limits.first_used_by(&spec), ["limits.memory"]);
        spec.millicpus = Some(500);
        spec.shm_bytes = Some(1 << 20);
        assert_eq!(limits.first_used_by(&spec), ["limits.cpus", "docker.shm"]);
        assert!(limits.first_used_by(&spec).is_empty());
    }
}
