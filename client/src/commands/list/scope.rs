//! Which part of what there is a list shows: that of the project, of a resource, or all.

use std::collections::BTreeSet;

use zdap_proto::message::CloneView;
use zdap_proto::name::ResourceName;

use crate::cli::{Format, ListArguments};
use crate::context::Context;
use crate::error::Failure;
use crate::project::Project;
use crate::words::Words;

/// Which resources are shown: the named one, else those of the compose file, if there is one.
pub(super) struct Scope {
    pub(super) project: Option<Project>,
    /// The named one.
    pub(super) resource: Option<ResourceName>,
    /// The ids of the clones that are attached in the project.
    pub(super) attached: BTreeSet<String>,
    attached_resources: BTreeSet<String>,
    only_attached: bool,
    services: Option<BTreeSet<String>>,
    hidden: BTreeSet<String>,
}

impl Scope {
    /// Looks at the project. Which resource is named is for the nodes to say.
    pub(super) fn new(
        context: &Context<'_>,
        arguments: &ListArguments,
        words: &Words,
    ) -> Result<Self, Failure> {
        // Without --attached, the project only narrows the list: what is wrong in it is said and no more.
        let optional = |failure: Failure| match arguments.attached {
            true => Err(failure),
            false => {
                context.output.warn(&failure.message);
                Ok(())
            }
        };
        let project = match arguments.attached {
            true => Some(context.project()?),
            false => context
                .project_if_any()
                .or_else(|failure| optional(failure).map(|()| None))?,
        };
        let attached = project.as_ref().map_or(Ok(Vec::new()), Project::attached);
        let attached = attached.or_else(|error| optional(error.into()).map(|()| Vec::new()))?;
        let services = match &project {
            Some(project) if !arguments.all && words.subject.is_none() => Some(project.services()?),
            Some(_) | None => None,
        };
        Ok(Self {
            project,
            resource: None,
            attached: attached.iter().map(|attached| attached.clone.clone()).collect(),
            attached_resources: attached
                .iter()
                .map(|attached| attached.resource.clone())
                .collect(),
            only_attached: arguments.attached,
            services: services.map(BTreeSet::from_iter),
            hidden: BTreeSet::new(),
        })
    }

    /// Returns whether this one is to be shown.
    pub(super) fn has(&mut self, resource: &ResourceName, clone: Option<&CloneView>) -> bool {
        let is_named = self.resource.as_ref().is_none_or(|named| named == resource);
        let is_attached = match clone {
            Some(clone) => self.attached.contains(clone.id.as_str()),
            None => self.attached_resources.contains(resource.as_str()),
        };
        if !is_named || (self.only_attached && !is_attached) {
            return false;
        }
        let is_service = |services: &BTreeSet<String>| services.contains(resource.as_str());
        let shown = is_attached || self.services.as_ref().is_none_or(is_service);
        if !shown {
            self.hidden.insert(resource.to_string());
        }
        shown
    }

    /// Says that there is nothing, and of which resource, so that it is not taken for a failure.
    pub(super) fn tell_empty(
        &self,
        context: &Context<'_>,
        arguments: &ListArguments,
        text: impl FnOnce(Option<&ResourceName>) -> String,
    ) {
        let is_talk = !context.output.is_json() && arguments.format != Format::Json;
        if self.hidden.is_empty() && is_talk {
            context.output.say(&text(self.resource.as_ref()));
        }
    }

    /// Names what the project narrows the list by.
    pub(super) fn tell_hidden(&self, context: &Context<'_>) {
        if !self.hidden.is_empty() {
            let names: Vec<&str> = self.hidden.iter().map(String::as_str).collect();
            context.output.say(&format!(
                "not services of this project: {}; `--all` shows them too",
                names.join(", ")
            ));
        }
    }
}
