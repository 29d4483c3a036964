//! A container of ours: what is asked of the engine, and what is read back from it.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;

use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, ContainerStateStatusEnum, ContainerSummary,
    ContainerSummaryStateEnum, EndpointSettings, HealthConfig, HostConfig, HostConfigLogConfig, Mount,
    MountType, RestartPolicy, RestartPolicyNameEnum,
};

use super::network;
use crate::runtime::{Address, InstanceId, InstanceSpec, Observed, ready};

/// Says which node a container belongs to.
pub(super) const NODE_LABEL: &str = "zdap.node";

/// Returns the container's name. Bases bear the node's mark, since two nodes on one engine may restore the same resource
/// in the same second; a clone's id is unique by itself.
pub(super) fn name(node: &str, id: &InstanceId) -> String {
    match id {
        InstanceId::Clone(_) => id.name(),
        InstanceId::Base(_) => {
            let mut hasher = DefaultHasher::new();
            node.hash(&mut hasher);
            format!("{}-{:06x}", id.name(), hasher.finish() & 0x00ff_ffff)
        }
    }
}

/// Returns what to create.
pub(super) fn body(node: &str, spec: &InstanceSpec) -> ContainerCreateBody {
    let given = |words: &[String]| (!words.is_empty()).then(|| words.to_vec());
    ContainerCreateBody {
        image: Some(spec.image.clone()),
        env: Some(spec.env.clone()),
        entrypoint: given(&spec.entrypoint),
        cmd: given(&spec.cmd),
        labels: Some(labels(node, spec)),
        // Readiness is ours to ask for, and nobody reads what the engine would find out over and over.
        healthcheck: Some(HealthConfig {
            test: Some(vec!["NONE".to_owned()]),
            ..Default::default()
        }),
        // Postgres's fast shutdown: on SIGTERM it would wait for every session to end.
        stop_signal: ready::is_postgres(spec).then(|| "SIGINT".to_owned()),
        host_config: Some(host_config(spec)),
        ..Default::default()
    }
}

fn labels(node: &str, spec: &InstanceSpec) -> HashMap<String, String> {
    HashMap::from([
        (NODE_LABEL.to_owned(), node.to_owned()),
        (INSTANCE_LABEL.to_owned(), to_label(&spec.id)),
        (PORT_LABEL.to_owned(), spec.port.to_string()),
    ])
}

fn host_config(spec: &InstanceSpec) -> HostConfig {
    let limit = |amount: Option<u64>| amount.map(|amount| i64::try_from(amount).unwrap_or(i64::MAX));
    HostConfig {
        network_mode: Some(network::NAME.to_owned()),
        // A mount, not a bind: the engine would make up a missing directory.
        mounts: Some(vec![Mount {
            typ: Some(MountType::BIND),
            source: Some(spec.data.display().to_string()),
            target: Some(spec.volume.clone()),
            ..Default::default()
        }]),
        shm_size: limit(spec.shm_bytes),
        nano_cpus: limit(
            spec.millicpus
                .map(|millicpus| millicpus.saturating_mul(1_000_000)),
        ),
        memory: limit(spec.memory_bytes),
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::NO),
            maximum_retry_count: None,
        }),
        log_config: Some(HostConfigLogConfig {
            typ: Some("json-file".to_owned()),
            config: Some(HashMap::from(
                [("max-size", "8m"), ("max-file", "2")]
                    .map(|(name, value)| (name.to_owned(), value.to_owned())),
            )),
        }),
        security_opt: Some(vec!["no-new-privileges".to_owned()]),
        ..Default::default()
    }
}

/// Returns whether a container with these labels is the instance `id` of `node`.
pub(super) fn belongs_to(labels: Option<&HashMap<String, String>>, node: &str, id: &InstanceId) -> bool {
    let label = |name| labels.and_then(|labels| labels.get(name));
    label(NODE_LABEL).is_some_and(|label| label == node)
        && label(INSTANCE_LABEL).is_some_and(|label| *label == to_label(id))
}

/// Reads which instance a container with these labels is.
pub(super) fn instance(labels: &HashMap<String, String>) -> Option<InstanceId> {
    serde_json::from_str(labels.get(INSTANCE_LABEL)?).ok()
}

/// Reads one entry of the engine's list; nothing if its labels are not ours after all.
pub(super) fn observe(container: &ContainerSummary) -> Option<Observed> {
    let labels = container.labels.as_ref()?;
    let id = instance(labels)?;
    let port = labels.get(PORT_LABEL)?.parse().ok()?;
    let runs = container.state == Some(ContainerSummaryStateEnum::RUNNING);
    let networks = container
        .network_settings
        .as_ref()
        .and_then(|settings| settings.networks.as_ref());
    Some(Observed {
        id,
        running: address(networks, port).filter(|_| runs),
    })
}

/// Returns where a container in our network listens.
pub(super) fn address(networks: Option<&HashMap<String, EndpointSettings>>, port: u16) -> Option<Address> {
    let ip = networks?.get(network::NAME)?.ip_address.as_ref()?.parse().ok()?;
    Some(Address::Tcp(SocketAddr::new(ip, port)))
}

/// Returns the status that a container ended with, if it ever ran.
pub(super) fn exit_status(container: &ContainerInspectResponse) -> Option<i64> {
    let state = container.state.as_ref()?;
    match state.status {
        Some(ContainerStateStatusEnum::CREATED) => None,
        _ => state.exit_code,
    }
}

fn to_label(id: &InstanceId) -> String {
    serde_json::to_string(id).expect("names are text")
}

const INSTANCE_LABEL: &str = "zdap.instance";
const PORT_LABEL: &str = "zdap.port";

#[cfg(test)]
mod tests {
    use zdap_proto::name::BaseId;

    use super::*;
    use crate::runtime::tests::spec;

    fn base() -> InstanceId {
        InstanceId::Base(BaseId {
            resource: "orders".parse().unwrap(),
            created_at: "2026-11-22T13:39:25Z".parse().unwrap(),
        })
    }

    #[test]
    fn bases_of_two_nodes_on_one_engine_have_different_names() {
        let (one, other) = (name("cluster/a", &base()), name("cluster/b", &base()));
        assert!(one.starts_with("zdap-orders-base-2026-11-22T13.39.25Z-"), "{one}");
        assert_ne!(one, other);
        assert_eq!(
            name("cluster/a", &spec("orders-k3v9x2mq").id),
            "zdap-orders-k3v9x2mq"
        );
    }

    #[test]
    fn a_container_of_another_node_or_instance_is_not_ours() {
        let spec = spec("orders-k3v9x2mq");
        let labels = labels("cluster/a", &spec);
        assert!(belongs_to(Some(&labels), "cluster/a", &spec.id));
        assert!(!belongs_to(Some(&labels), "cluster/b", &spec.id));
        assert!(!belongs_to(Some(&labels), "cluster/a", &base()));
        assert!(!belongs_to(None, "cluster/a", &spec.id));
    }

    #[test]
    fn no_port_is_published() {
        let body = body("cluster/a", &spec("orders-k3v9x2mq"));
        let host = body.host_config.unwrap();
        assert_eq!(host.port_bindings, None);
        assert_ne!(host.publish_all_ports, Some(true));
        assert_eq!(host.network_mode.as_deref(), Some("zdap"));
    }

    #[test]
    fn what_the_engine_lists_reads_back() {
        let spec = spec("orders-k3v9x2mq");
        let endpoint = EndpointSettings {
            ip_address: Some("172.18.0.2".to_owned()),
            ..Default::default()
        };
        let mut summary = ContainerSummary {
            labels: Some(labels("cluster/a", &spec)),
            state: Some(ContainerSummaryStateEnum::RUNNING),
            network_settings: Some(bollard::models::ContainerSummaryNetworkSettings {
                networks: Some(HashMap::from([("zdap".to_owned(), endpoint)])),
            }),
            ..Default::default()
        };
        let observed = observe(&summary).unwrap();
        assert_eq!(observed.id, spec.id);
        assert_eq!(
            observed.running,
            Some(Address::Tcp("172.18.0.2:5432".parse().unwrap()))
        );
        summary.state = Some(ContainerSummaryStateEnum::EXITED);
        assert_eq!(observe(&summary).unwrap().running, None);
    }
}
