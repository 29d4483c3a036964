//! `zdap clone`: a clone that is attached to nothing.

use serde::Serialize;
use zdap_proto::message::{CloneView, Stages};
use zdap_proto::name::ResourceName;

use super::{choose, make_clone};
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
}

/// Makes a clone and prints its id.
pub(super) async fn run(context: &Context<'_>, arguments: &CloneArguments) -> Result<(), Failure> {
    let words = Words::parse(&arguments.words)?;
    let resource: ResourceName = words.subject()?.parse()?;
    let output = context.output;
    let origins = context.origins()?;
    let mut node = choose(context, &origins, &resource, &words).await?;
    let created = make_clone(context, &mut node, &resource, words.time).await?;
    let clone = &created.clone;
    output.say(&format!("attach it with `zdap attach --new=false {}`", clone.id));
    let document = Document {
        clone,
        stages: &created.stages,
    };
    output.data(clone.id.as_str(), &document)
}
