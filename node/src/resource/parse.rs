//! The text of a resource file -> a [`Resource`], or the one thing that is wrong with it first.

use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use zdap_proto::name::ResourceName;

use super::section::{Field, Section};
use super::yaml::{self, Fault, Node};
use super::{
    ClonePool, DockerSettings, Limits, Params, Position, Resource, ResourceError, Retention, Timeouts,
};
use crate::quantity;
use crate::storage::ZfsProperties;

/// A resource, and where its file gives the names that no other may have.
#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) resource: Resource,
    pub(super) name: Position,
    pub(super) alias: Option<Position>,
}

/// Parses the text of `file`. The scripts it names are looked at, relative to the directory of `file`.
pub(super) fn parse(text: &str, file: &Path) -> Result<Parsed, ResourceError> {
    yaml::parse(text)
        .and_then(|tree| read(&tree, file))
        .map_err(|fault| ResourceError {
            file: file.to_owned(),
            position: fault.position,
            key: fault.key,
            message: fault.message,
        })
}

fn read(tree: &Node, file: &Path) -> Result<Parsed, Fault> {
    let top = Section::open("", tree.position, tree)?;
    let name = top.required("name")?;
    let alias = top.get("alias");
    let script = |field: Field<'_>| field.script(file);
    let resource = Resource {
        name: name.parse(ResourceName::from_str)?,
        alias: match &alias {
            Some(field) => Some(field.text()?.to_owned()),
            None => None,
        },
        file: file.to_owned(),
        retrieval: top.get("retrieval").map(script).transpose()?,
        creation: top.required("creation").and_then(script)?,
        masking: top.get("masking").map(script).transpose()?,
        cron: top.get("cron").map(|field| field.parse(str::parse)).transpose()?,
        docker: docker(&top.section("docker")?)?,
        restore_params: params(&top.section("restore_params")?)?,
        clone_params: params(&top.section("clone_params")?)?,
        timeouts: timeouts(&top.section("timeouts")?)?,
        limits: limits(&top.section("limits")?)?,
        retention: retention(&top.section("retention")?)?,
        clone_pool: match top.get("clone_pool") {
            Some(_) => Some(clone_pool(&top.section("clone_pool")?)?),
            None => None,
        },
        ttl: top.duration("ttl")?,
        idle_stop: top.duration("idle_stop")?,
    };
    Ok(Parsed {
        resource,
        name: name.position,
        alias: alias.map(|field| field.position),
    })
}

fn docker(section: &Section<'_>) -> Result<DockerSettings, Fault> {
    let image = section.required("image")?;
    let volume = section.get("volume");
    let volume = match &volume {
        Some(field) => field.parse(|text| match text.starts_with('/') {
            true => Ok(text.to_owned()),
            false => Err(format!("`{text}` is not an absolute path")),
        })?,
        None => POSTGRES_DATA.to_owned(),
    };
    Ok(DockerSettings {
        image: image.parse(
            |text| match text.is_empty() || text.contains(char::is_whitespace) {
                true => Err(format!("`{text}` is not an image such as `postgres:17`")),
                false => Ok(text.to_owned()),
            },
        )?,
        port: match section.get("port") {
            Some(field) => field.number(1, u16::MAX.into(), "a port")?,
            None => POSTGRES_PORT,
        },
        env: section.env()?,
        entrypoint: section.texts("entrypoint")?,
        cmd: section.texts("cmd")?,
        volume,
        healthcheck: section
            .get("healthcheck")
            .map(|field| field.text().map(str::to_owned))
            .transpose()?,
        shm_bytes: section.bytes("shm")?,
    })
}

fn params(section: &Section<'_>) -> Result<Params, Fault> {
    let properties = section.items("zfs")?;
    for (pair, field) in &properties {
        ZfsProperties::parse([*pair]).map_err(|message| field.fault(message))?;
    }
    let zfs = ZfsProperties::parse(properties.iter().map(|(pair, _)| *pair));
    Ok(Params {
        env: section.env()?,
        entrypoint: section.texts("entrypoint")?,
        cmd: section.texts("cmd")?,
        zfs: zfs.map_err(|message| section.fault(message))?,
    })
}

fn timeouts(section: &Section<'_>) -> Result<Timeouts, Fault> {
    Ok(Timeouts {
        ready: section.duration("ready")?.unwrap_or(READY_TIMEOUT),
        retrieval: section.duration("retrieval")?.unwrap_or(SCRIPT_TIMEOUT),
        creation: section.duration("creation")?.unwrap_or(SCRIPT_TIMEOUT),
    })
}

fn limits(section: &Section<'_>) -> Result<Limits, Fault> {
    Ok(Limits {
        millicpus: section
            .get("cpus")
            .map(|field| field.parse(quantity::millicpus))
            .transpose()?,
        memory_bytes: section.bytes("memory")?,
        disk_bytes: section.bytes("disk")?,
        clones_per_user: section.count("clones_per_user", 1)?,
    })
}

fn retention(section: &Section<'_>) -> Result<Retention, Fault> {
    Ok(Retention {
        keep_snapshots: section.count("keep_snapshots", 0)?.unwrap_or(KEEP_SNAPSHOTS),
        keep_days: section.count("keep_days", 0)?,
    })
}

fn clone_pool(section: &Section<'_>) -> Result<ClonePool, Fault> {
    let seconds = |key| -> Result<Option<Duration>, Fault> {
        Ok(section
            .count(key, 1)?
            .map(|count| Duration::from_secs(count.into())))
    };
    let min_clones = section.count("min_clones", 0)?.unwrap_or(0);
    let max_clones = section.count("max_clones", 0)?.unwrap_or(min_clones);
    if let Some(field) = section.get("max_clones").filter(|_| max_clones < min_clones) {
        return Err(field.fault(format!(
            "{max_clones} is fewer than the {min_clones} of `min_clones`"
        )));
    }
    let longest = seconds("claim_max_timeout_seconds")?.unwrap_or(LONGEST_CLAIM);
    let usual = seconds("claim_default_timeout_seconds")?.unwrap_or_else(|| USUAL_CLAIM.min(longest));
    if let Some(field) = section
        .get("claim_default_timeout_seconds")
        .filter(|_| usual > longest)
    {
        let (usual, longest) = (usual.as_secs(), longest.as_secs());
        return Err(field.fault(format!(
            "{usual} is longer than the {longest} of `claim_max_timeout_seconds`"
        )));
    }
    Ok(ClonePool {
        min_clones,
        max_clones,
        reset_on_new_snap: match section.get("reset_on_new_snap") {
            Some(field) => field.flag()?,
            None => false,
        },
        claim_max_timeout: longest,
        claim_default_timeout: usual,
    })
}

const POSTGRES_PORT: u16 = 5432;
/// Where the official Postgres image keeps its data up to version 17.
const POSTGRES_DATA: &str = "/var/lib/postgresql/data";
/// A large database that was stopped cleanly answers within seconds; this allows for a machine under load.
const READY_TIMEOUT: Duration = Duration::from_secs(2 * 60);
/// A night: enough to fetch and restore terabytes, and over before the next one.
const SCRIPT_TIMEOUT: Duration = Duration::from_secs(12 * 60 * 60);
const KEEP_SNAPSHOTS: u32 = 3;
/// The original's numbers.
const LONGEST_CLAIM: Duration = Duration::from_secs(90_000);
const USUAL_CLAIM: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests;
