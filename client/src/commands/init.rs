//! `zdap init`.

use crate::cli::Init;
use crate::context::Context;
use crate::error::Failure;
use crate::project::{Project, ProjectFile};

/// Writes `.zdap`, and an empty override if there is none.
pub(super) fn run(context: &Context<'_>, arguments: Init) -> Result<(), Failure> {
    let directory = context.directory()?;
    let file = ProjectFile::choose(&directory, arguments.compose, arguments.r#override, |name| {
        std::env::var(name).ok()
    })?;
    // Before anything is written: a file that cannot be read makes no project.
    let services = Project::of(&file, &directory).services()?;
    Project::create(&directory, &file)?;
    context.output.say(&format!(
        "this project is {} with {}; its services are {}",
        file.compose.display(),
        file.r#override.display(),
        match services.as_slice() {
            [] => "none".to_owned(),
            services => services.join(", "),
        }
    ));
    context.output.data("", &file)
}
