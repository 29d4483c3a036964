//! `zdap auto-complete`: the script that asks this program whenever somebody presses Tab.

use clap_complete::env::{Bash, EnvCompleter, Fish, Zsh};

use crate::cli::Shell;
use crate::context::Context;
use crate::error::Failure;

/// Prints the script.
pub(super) fn run(context: &Context<'_>, shell: Shell) -> Result<(), Failure> {
    let completer: &dyn EnvCompleter = match shell {
        Shell::Bash => &Bash,
        Shell::Zsh => &Zsh,
        Shell::Fish => &Fish,
    };
    let mut script = Vec::new();
    completer
        .write_registration("COMPLETE", "zdap", "zdap", "zdap", &mut script)
        .map_err(|error| Failure::caused("cannot write the script", &error))?;
    context.output.line(&String::from_utf8_lossy(&script))
}
