//! What is written on a dataset of ours, and where such a dataset lies in our tree.
//!
//! ```text
//! <tree>/<resource>            a folder of bases
//! <tree>/<resource>/<time>     a base, with its snapshots `@base` and `@<time>`
//! <tree>/clones                the folder of clones
//! <tree>/clones/<clone id>     a clone
//! ```
//!
//! A resource may be named `clones`: its bases lie beside the clones, and no time reads like a clone id.

use serde::{Deserialize, Serialize};
use zdap_proto::message::CloneRecord;
use zdap_proto::name::{BaseId, SnapshotId, SnapshotTime};

use super::StorageError;

/// The folder of clones.
pub(super) const CLONES: &str = "clones";

/// The text on one dataset of ours. It names the place where it lies: what was copied or renamed is no longer ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Record {
    /// On a clone.
    Clone(CloneRecord),
    /// On a base.
    Base(BaseId),
    /// On what only holds other datasets.
    Folder {
        /// Its name.
        folder: String,
    },
}

impl Record {
    /// Parses a record. `None` for any text that is not one, such as that of a version to come.
    pub(super) fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// Returns the record as JSON on one line.
    pub(super) fn text(&self) -> Result<String, StorageError> {
        let text = serde_json::to_string(self)
            .map_err(|error| StorageError::Unreadable(format!("the record of {}: {error}", self.place())))?;
        match text.len() {
            0..=LONGEST => Ok(text),
            length => Err(StorageError::Unreadable(format!(
                "the record of {} is {length} bytes long; a dataset holds at most {LONGEST}",
                self.place()
            ))),
        }
    }

    /// Returns the path below our tree where the dataset lies.
    pub(super) fn place(&self) -> String {
        match self {
            Self::Clone(record) => format!("{CLONES}/{}", record.id),
            Self::Base(base) => base.to_string(),
            Self::Folder { folder } => folder.clone(),
        }
    }
}

/// Returns the snapshot of `base` that carries `label` after its `@`, if that is a label of ours.
pub(super) fn snapshot_of(base: &BaseId, label: &str) -> Option<SnapshotId> {
    let snapshot = match SnapshotTime::parse_dashed(label) {
        Ok(taken_at) => SnapshotId {
            base: base.clone(),
            taken_at,
        },
        Err(_) => SnapshotId::of_restore(base.clone()),
    };
    (snapshot.label() == label).then_some(snapshot)
}

/// zfs-fuse keeps 1024 bytes of a property, OpenZFS 8192.
const LONGEST: usize = 1000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn base(resource: &str) -> BaseId {
        BaseId {
            resource: resource.parse().unwrap(),
            created_at: "2026-11-22T13:39:25Z".parse().unwrap(),
        }
    }

    fn clone(resource: &str) -> CloneRecord {
        CloneRecord {
            id: format!("{resource}-k3v9x2mq").parse().unwrap(),
            request_id: "0123456789abcdef0123456789abcdef".parse().unwrap(),
            attempt: 1,
            owner: "o".repeat(128).parse().unwrap(),
            snapshot: SnapshotId {
                base: base(resource),
                taken_at: "2026-11-23T13:39:25Z".parse().unwrap(),
            },
            created_at: "2026-11-22T13:39:25.123456789Z".parse().unwrap(),
            state: zdap_proto::message::CloneState::Destroying,
            pooled: false,
            expires_at: Some("2026-11-22T13:39:25.123456789Z".parse().unwrap()),
        }
    }

    #[test]
    fn the_longest_record_of_a_clone_fits_and_reads_back() {
        let record = Record::Clone(clone(&"r".repeat(63)));
        let text = record.text().unwrap();
        assert_eq!(Record::parse(&text), Some(record));
    }

    #[test]
    fn a_record_that_would_be_cut_off_is_an_error() {
        let folder = "f".repeat(LONGEST);
        let error = Record::Folder { folder }.text().unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("is 1013 bytes long; a dataset holds at most 1000"),
            "{error}"
        );
    }

    #[test]
    fn a_base_of_a_resource_named_clones_is_in_no_clones_way() {
        let place = Record::Base(base(CLONES)).place();
        let (folder, name) = place.split_once('/').unwrap();
        assert_eq!(folder, CLONES);
        assert!(name.parse::<zdap_proto::name::CloneId>().is_err());
    }

    #[test]
    fn only_labels_we_write_are_ours() {
        let base = base("orders");
        assert_eq!(
            snapshot_of(&base, "base"),
            Some(SnapshotId::of_restore(base.clone()))
        );
        let later = snapshot_of(&base, "2026-11-23T00.00.00Z").unwrap();
        assert_eq!(later.label(), "2026-11-23T00.00.00Z");
        for label in ["", "manual", "2026-11-22T13.39.25Z", "2026-11-23", "base "] {
            assert_eq!(snapshot_of(&base, label), None, "{label}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics_the_parser(text in "\\PC*") {
            let _ = Record::parse(&text);
            let _ = snapshot_of(&base("orders"), &text);
        }
    }
}
