//! The relay's image on this machine: looked for while the clone is made, and got if it is missing.

use crate::context::Context;
use crate::engine::{Engine, Users, relay_image};
use crate::error::Failure;
use crate::node::Node;
use zdap_proto::refusal::chain;

/// What compose will find on this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Relay {
    /// Whether a healthcheck may have a `start_interval`.
    pub(super) start_interval: bool,
    /// Who the relay has to run as to be us, where that is not our own `uid:gid`.
    pub(super) user: Option<String>,
}

/// Makes sure that compose will find the relay's image: already here, or from the node, or pulled. Where that fails, the
/// clone is good nonetheless, so that it is said and no more.
pub(super) async fn ensure(context: &Context<'_>, node: &Node) -> Relay {
    let output = context.output;
    let image = relay_image();
    let engine = match Engine::find().await {
        Ok(engine) => engine,
        Err(error) => {
            output.warn(&format!(
                "{}; the relay's image {image} was not looked for, and compose needs it",
                chain(&error)
            ));
            return Relay::default();
        }
    };
    if let Err(failure) = get(context, &engine, node, &image).await {
        output.warn(&failure.message);
        if let Some(hint) = failure.hint {
            output.say(&hint);
        }
    }
    Relay {
        start_interval: engine.knows_start_interval(),
        user: user(context, &engine).await,
    }
}

/// The identity is ours and readable to nobody else.
async fn user(context: &Context<'_>, engine: &Engine) -> Option<String> {
    match engine.users().await {
        Ok(Users::Same) => None,
        Ok(Users::Rootless) => Some("0:0".to_owned()),
        Ok(Users::Remapped) => {
            context.output.warn(
                "the Docker engine maps the users of containers to others (userns-remap), who cannot read the relay's \
                 identity; say `userns_mode: host` for the service in the compose file",
            );
            None
        }
        Err(error) => {
            context.output.warn(&chain(&error));
            None
        }
    }
}

async fn get(context: &Context<'_>, engine: &Engine, node: &Node, image: &str) -> Result<(), Failure> {
    if engine.has(image).await? {
        return Ok(());
    }
    let from_node = async {
        let architecture = engine.architecture().await?;
        context
            .output
            .doing(format!("getting {image} from {}", node.address()));
        let program = node.relay_program(architecture).await?;
        engine.import_relay(crate::VERSION, &program).await?;
        Ok::<_, Failure>(())
    };
    let Err(node_failure) = from_node.await else {
        return Ok(());
    };
    context.output.doing(format!("pulling {image}"));
    let Err(pull_failure) = engine.pull_relay(crate::VERSION).await else {
        return Ok(());
    };
    Err(Failure::new(format!(
        "the relay's image {image} is missing\n  from the node: {}\n  from the registry: {}",
        node_failure.message,
        chain(&pull_failure)
    ))
    .hinted(format!(
        "before `docker compose up`, build it in a checkout of zdap: \
         `deploy/build.sh relay-image --release`, or by deploy/Dockerfile.relay as {image}"
    )))
}
