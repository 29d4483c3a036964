//! The network that all containers of ours are in.

use std::collections::HashMap;

use bollard::Docker as Engine;
use bollard::models::NetworkCreateRequest;

use super::{NOT_FOUND, failed, status};
use crate::runtime::RuntimeError;

/// The network's name in the engine.
pub(super) const NAME: &str = "zdap";

/// Makes the network unless it is there.
pub(super) async fn ensure(engine: &Engine) -> Result<(), RuntimeError> {
    if exists(engine).await? {
        return Ok(());
    }
    match engine.create_network(request()).await {
        Ok(_) => Ok(()),
        // Another node on this engine may have made it in between.
        Err(_) if exists(engine).await? => Ok(()),
        Err(error) => Err(failed("create the network", NAME, &error)),
    }
}

async fn exists(engine: &Engine) -> Result<bool, RuntimeError> {
    match engine.inspect_network(NAME, None).await {
        Ok(_) => Ok(true),
        Err(error) if status(&error) == Some(NOT_FOUND) => Ok(false),
        Err(error) => Err(failed("inspect the network", NAME, &error)),
    }
}

fn request() -> NetworkCreateRequest {
    let options = [
        // Clones do not reach each other; the node, which is the bridge's other end, reaches all.
        ("com.docker.network.bridge.enable_icc", "false"),
        // An engine lets two networks have one name, but not one bridge.
        ("com.docker.network.bridge.name", "zdap0"),
    ];
    NetworkCreateRequest {
        name: NAME.to_owned(),
        driver: Some("bridge".to_owned()),
        options: Some(HashMap::from(
            options.map(|(name, value)| (name.to_owned(), value.to_owned())),
        )),
        ..Default::default()
    }
}
