//! (resource, purpose) -> what to run. Pure.

use std::path::PathBuf;

use zdap_proto::message::Account;

use crate::resource::{Params, Resource};
use crate::runtime::{InstanceId, InstanceSpec, variable};

/// Returns what runs the database of a clone or, while it is restored, of a base: `docker` with the parameters of the
/// purpose appended. Limits hold for clones; a restore may use the machine.
pub fn spec(resource: &Resource, id: InstanceId, data: PathBuf) -> InstanceSpec {
    let docker = &resource.docker;
    let (params, limits) = match &id {
        InstanceId::Base(_) => (&resource.restore_params, None),
        InstanceId::Clone(_) => (&resource.clone_params, Some(&resource.limits)),
    };
    InstanceSpec {
        id,
        image: docker.image.clone(),
        port: docker.port,
        env: environment(resource, params),
        entrypoint: [docker.entrypoint.as_slice(), &params.entrypoint].concat(),
        cmd: [docker.cmd.as_slice(), &params.cmd].concat(),
        data,
        volume: docker.volume.clone(),
        healthcheck: docker.healthcheck.clone(),
        shm_bytes: docker.shm_bytes,
        millicpus: limits.and_then(|limits| limits.millicpus),
        memory_bytes: limits.and_then(|limits| limits.memory_bytes),
        ready_timeout: resource.timeouts.ready,
    }
}

/// Returns the account inside a clone's database, by the rules of the official image.
pub fn account(resource: &Resource) -> Account {
    let env = environment(resource, &resource.clone_params);
    let user = variable(&env, "POSTGRES_USER").unwrap_or("postgres").to_owned();
    let database = variable(&env, "POSTGRES_DB").map_or_else(|| user.clone(), str::to_owned);
    Account {
        password: variable(&env, "POSTGRES_PASSWORD").map(str::to_owned),
        database,
        user,
    }
}

fn environment(resource: &Resource, params: &Params) -> Vec<String> {
    [resource.docker.env.as_slice(), &params.env].concat()
}
