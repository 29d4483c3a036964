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
            Ok(Record::Clone(record)) => inventory.clones.push(CloneDataset { record, path: path() }),
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
