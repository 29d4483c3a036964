//! `zdap clone`: a clone that is attached to nothing.

use serde::Serialize;
use zdap_proto::message::{CloneView, Considered, Stages};
use zdap_proto::name::ResourceName;

use super::{explain, make_clone, place};
use crate::cli::CloneArguments;
use crate::context::Context;
use crate::error::Failure;
use crate::words::Words;

/// The clone and where the time went.
#[derive(Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    clone: &'a CloneView,
    stages: &'a Stages,
    #[serde(skip_serializing_if = "Option::is_none")]
    considered: Option<&'a [Considered]>,
}

/// Makes a clone and prints its id.
pub(super) async fn run(context: &Context<'_>, arguments: &CloneArguments) -> Result<(), Failure> {
    let words = Words::parse(&arguments.words)?;
    let resource: ResourceName = words.subject()?.parse()?;
    let output = context.output;
    let reached = context.reach().await?;
    let target = place(context, &reached, &resource, &words).await?;
    let created = make_clone(context, &target, &resource, words.time).await?;
    let clone = &created.clone;
    if arguments.explain {
        output.say_asked(&explain::table_of(&created.considered));
    }
    output.say(&format!("attach it with `zdap attach --new=false {}`", clone.id));
    let document = Document {
        clone,
        stages: &created.stages,
        considered: arguments.explain.then_some(&created.considered),
    };
    output.data(clone.id.as_str(), &document)
}
