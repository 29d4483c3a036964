//! Reads what the ZFS programs print; no program is run here.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::storage::record::{Record, snapshot_of};
use crate::storage::{BaseDataset, Capacity, CloneDataset, Inventory, StorageError};

/// The properties [`listing`] reads.
pub(super) const PROPERTIES: &str = "type,zdap:record,zdap:node,mountpoint,mounted,referenced";

/// Datasets and snapshots by name.
pub(super) type Listing = BTreeMap<String, Dataset>;

/// What is told of one dataset or snapshot. `None` where it has no such property.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Dataset {
    /// `filesystem`, `snapshot`, `volume`, `bookmark`.
    pub(super) kind: String,
    /// Its own `zdap:record`.
    pub(super) record: Option<String>,
    /// Its own `zdap:node`.
    pub(super) node: Option<String>,
    /// Where it belongs in the file system: a path, `none` or `legacy`.
    pub(super) mountpoint: Option<String>,
    /// Whether it is there.
    pub(super) mounted: bool,
    /// The size of its data, in bytes, shared or not.
    pub(super) referenced: u64,
}

/// Parses the output of `zfs get -Hp -r -o name,property,value,source` [`PROPERTIES`] `<dataset>`.
///
/// User properties are inherited, and snapshots inherit those of their dataset: only values set on the dataset itself
/// (source `local`, or `received` after `zfs receive`) count.
pub(super) fn listing(text: &str) -> Result<Listing, StorageError> {
    let mut datasets = Listing::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let (name, property, value, source) =
            columns(line).ok_or_else(|| odd("zfs get", line, "does not have four columns"))?;
        let dataset = datasets.entry(name.to_owned()).or_default();
        let own = || matches!(source, "local" | "received").then(|| value.to_owned());
        match property {
            "type" => value.clone_into(&mut dataset.kind),
            "zdap:record" => dataset.record = own(),
            "zdap:node" => dataset.node = own(),
            "mountpoint" => dataset.mountpoint = (value != "-").then(|| value.to_owned()),
            "mounted" => dataset.mounted = value == "yes",
            "referenced" if value == "-" => {} // a bookmark's
            "referenced" => dataset.referenced = bytes("zfs get", line, value)?,
            _ => return Err(odd("zfs get", line, "was not asked for")),
        }
    }
    Ok(datasets)
}

/// Sorts `listing`, or the part of it below one of our datasets, into what is ours and what is not.
pub(super) fn inventory(tree: &str, listing: &Listing) -> Inventory {
    let mut inventory = Inventory::default();
    let mut bases: BTreeMap<&str, BaseDataset> = BTreeMap::new();
    for (name, dataset) in listing.iter().filter(|(name, _)| *name != tree) {
        if name.contains(['@', '#']) {
            continue; // below, when all bases are known
        }
        let path = || PathBuf::from(dataset.mountpoint.as_deref().unwrap_or_default());
        match own_record(tree, name, dataset) {
            Ok(Record::Clone(record)) => inventory.clones.push(CloneDataset {
                record,
                path: path(),
                mounted: dataset.mounted,
            }),
            Ok(Record::Base(id)) => {
                let base = BaseDataset {
                    id,
                    path: path(),
                    snapshots: Vec::new(),
                };
                bases.insert(name, base);
            }
            Ok(Record::Folder { .. }) => {}
            Err(reason) => inventory.foreign.push(format!("{name}: {reason}")),
        }
    }
    for (name, dataset) in listing.iter().filter(|(name, _)| name.contains(['@', '#'])) {
        let ours = name.split_once('@').and_then(|(base, label)| {
            let base = bases.get_mut(base)?;
            Some((snapshot_of(&base.id, label)?, base))
        });
        match ours {
            Some((snapshot, base)) => base.snapshots.push((snapshot, dataset.referenced)),
            None => inventory
                .foreign
                .push(format!("{name}: a {} that zdap did not make", dataset.kind)),
        }
    }
    inventory.bases = bases.into_values().collect();
    for base in &mut inventory.bases {
        base.snapshots.sort_unstable();
    }
    inventory
}

/// Returns the record of a dataset of ours, or says why it is not ours.
pub(super) fn own_record(tree: &str, name: &str, dataset: &Dataset) -> Result<Record, String> {
    let Some(text) = &dataset.record else {
        return Err(format!("a {} without a record of zdap's", dataset.kind));
    };
    let Some(record) = Record::parse(text) else {
        return Err(format!("its zdap:record is not understood: {text}"));
    };
    let place = format!("{tree}/{}", record.place());
    match place == name {
        true => Ok(record),
        false => Err(format!("its zdap:record is that of {place}")),
    }
}

/// Parses the output of `zfs get -Hp -o property,value used,available <dataset>`.
pub(super) fn capacity(text: &str) -> Result<Capacity, StorageError> {
    let mut amounts = BTreeMap::new();
    for line in text.lines() {
        if let Some((property, value)) = line.split_once('\t') {
            amounts.insert(property, bytes("zfs get", line, value)?);
        }
    }
    match (amounts.get("used"), amounts.get("available")) {
        (Some(&used), Some(&free_bytes)) => Ok(Capacity {
            free_bytes,
            total_bytes: free_bytes.saturating_add(used),
        }),
        _ => Err(odd("zfs get", text, "does not tell used and available")),
    }
}

/// Parses the output of `zfs get -Hp -o value referenced <dataset>`.
pub(super) fn referenced(text: &str) -> Result<u64, StorageError> {
    bytes("zfs get", text, text.trim())
}

/// Parses the output of `zpool list -H -o health <pool>`.
pub(super) fn is_healthy(text: &str) -> bool {
    matches!(text.trim(), "ONLINE" | "DEGRADED")
}

/// Splits a line in four; a tab may be in the value, and only there.
fn columns(line: &str) -> Option<(&str, &str, &str, &str)> {
    let (name, rest) = line.split_once('\t')?;
    let (property, rest) = rest.split_once('\t')?;
    let (value, source) = rest.rsplit_once('\t')?;
    Some((name, property, value, source))
}

fn bytes(program: &str, line: &str, value: &str) -> Result<u64, StorageError> {
    value
        .parse()
        .map_err(|_| odd(program, line, "does not hold a number of bytes"))
}

fn odd(program: &str, line: &str, what: &str) -> StorageError {
    StorageError::Unreadable(format!("`{program}` printed `{line}`, which {what}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FUSE: &str = include_str!("../../../testdata/zfs/zfs-fuse-0.7.list");
    const OPENZFS: &str = include_str!("../../../testdata/zfs/openzfs-2.1.list");

    #[test]
    fn what_is_ours_is_told_from_what_is_not_in_zfs_fuses_words() {
        let listing = listing(FUSE).unwrap();
        let root = &listing["tank/zdap"];
        assert_eq!(root.node.as_deref(), Some("k7f2m9x3q1w8/node-a"));
        assert_eq!(listing["tank/zdap/clones"].node, None, "inherited");
        let found = inventory("tank/zdap", &listing);
        let bases: Vec<_> = found.bases.iter().map(|base| base.id.to_string()).collect();
        assert_eq!(
            bases,
            ["orders/2026-11-22T13.39.25Z", "orders/2026-11-23T13.39.25Z"]
        );
        let snapshots: Vec<_> = found.bases[0]
            .snapshots
            .iter()
            .map(|(id, bytes)| (id.label(), *bytes))
            .collect();
        assert_eq!(
            snapshots,
            [
                ("base".to_owned(), 114_688),
                ("2026-11-23T08.00.00Z".to_owned(), 114_688)
            ]
        );
        assert_eq!(
            found.bases[1].snapshots,
            vec![],
            "a restore that was not finished"
        );
        assert!(!listing["tank/zdap/orders/2026-11-23T13.39.25Z"].mounted);
        assert_eq!(found.clones.len(), 1);
        assert_eq!(found.clones[0].record.id.as_str(), "orders-k3v9x2mq");
        assert_eq!(
            found.clones[0].path,
            PathBuf::from("/tank/zdap/clones/orders-k3v9x2mq")
        );
        assert_eq!(
            found.foreign,
            [
                "tank/zdap/a b: a filesystem without a record of zdap's",
                "tank/zdap/clones/orders-cccccccc: its zdap:record is not understood: {}",
                "tank/zdap/clones/orders-renamed1: its zdap:record is that of \
                 tank/zdap/clones/orders-bbbbbbbb",
                "tank/zdap/stranger: a filesystem without a record of zdap's",
                "tank/zdap/orders/2026-11-22T13.39.25Z@autosnap_daily: a snapshot that zdap did not make",
            ]
        );
    }

    #[test]
    fn what_is_ours_is_told_from_what_is_not_in_openzfs_words() {
        let found = inventory("tank/zdap", &listing(OPENZFS).unwrap());
        assert_eq!(found.bases.len(), 1);
        assert_eq!(found.bases[0].snapshots.len(), 1);
        assert_eq!(found.clones.len(), 1, "its record was received by `zfs receive`");
        assert_eq!(
            found.foreign,
            [
                "tank/zdap/swap: a volume without a record of zdap's",
                "tank/zdap/orders/2026-11-22T13.39.25Z#sent: a bookmark that zdap did not make",
            ]
        );
    }

    #[test]
    fn the_room_in_a_pool_is_what_is_used_and_what_is_free() {
        assert_eq!(
            capacity("used\t2420736\navailable\t4192407552\n").unwrap(),
            Capacity {
                free_bytes: 4_192_407_552,
                total_bytes: 4_194_828_288,
            }
        );
        for text in [
            "",
            "used\t1\n",
            "used\tx\navailable\t1\n",
            "used\t1\navailable\t3.9G\n",
        ] {
            assert!(capacity(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_tab_in_a_value_is_part_of_it() {
        let listing = listing("p/x\tzdap:record\ta\tb\tlocal\n").unwrap();
        assert_eq!(listing["p/x"].record.as_deref(), Some("a\tb"));
    }

    #[test]
    fn a_line_that_is_not_understood_is_shown() {
        for line in [
            "p/x",
            "p/x\ttype\tfilesystem",
            "p/x\treferenced\t1.5K\t-",
            "p/x\tnice\tyes\t-",
        ] {
            let error = listing(line).unwrap_err().to_string();
            assert!(error.contains(line), "{error}");
        }
    }

    #[test]
    fn a_pool_that_misses_a_disk_will_do_and_a_faulted_one_will_not() {
        assert!(is_healthy("ONLINE\n") && is_healthy("DEGRADED\n"));
        assert!(!is_healthy("FAULTED\n") && !is_healthy("UNAVAIL\n") && !is_healthy(""));
    }

    proptest! {
        #[test]
        fn no_text_panics_a_parser(text in "[\\PC\t\n]*") {
            let _ = (listing(&text), capacity(&text), referenced(&text));
        }

        #[test]
        fn no_listing_panics_the_inventory(
            lines in prop::collection::vec((
                "tank/zdap(/[a-z#@]{0,5}){0,2}",
                prop::sample::select(PROPERTIES.split(',').collect::<Vec<_>>()),
                "[0-9]{1,20}|\\PC{0,9}|\\{\"folder\":\"[a-z]\"\\}",
                "local|-|inherited from tank",
            ), 0..20),
        ) {
            let text: String = lines
                .iter()
                .map(|(name, property, value, source)| format!("{name}\t{property}\t{value}\t{source}\n"))
                .collect();
            if let Ok(listing) = listing(&text) {
                let _ = inventory("tank/zdap", &listing);
            }
        }
    }
}
