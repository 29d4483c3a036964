//! Which of a node's containers end, as the engine tells.

use std::collections::HashMap;

use bollard::Docker as Engine;
use bollard::models::EventMessage;
use bollard::query_parameters::EventsOptionsBuilder;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;

use super::container;
use super::error::chain;
use crate::runtime::InstanceId;

/// Says which containers of `node` end, until the engine stops telling.
pub(super) fn of<'a>(engine: &'a Engine, node: &str) -> BoxStream<'a, InstanceId> {
    let filters = HashMap::from([
        ("type", vec!["container".to_owned()]),
        ("event", vec!["die".to_owned()]),
        ("label", vec![format!("{}={node}", container::NODE_LABEL)]),
    ]);
    let options = EventsOptionsBuilder::default().filters(&filters).build();
    let told = engine.events(Some(options)).map(|event| {
        event
            .inspect_err(|error| tracing::debug!("the engine's events end: {}", chain(error)))
            .ok()
    });
    told.take_while(|event| std::future::ready(event.is_some()))
        .filter_map(|event| std::future::ready(event.as_ref().and_then(instance)))
        .boxed()
}

fn instance(event: &EventMessage) -> Option<InstanceId> {
    container::instance(event.actor.as_ref()?.attributes.as_ref()?)
}
