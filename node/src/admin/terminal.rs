//! Tables, progress and questions, for people and for pipes.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use anyhow::bail;
use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use zdap_proto::message::Progress;
use zdap_proto::name::ResourceName;

/// Prints a table without lines, as wide as it is.
pub(super) fn print_table(header: &[&str], rows: impl Iterator<Item = Vec<String>>) {
    let mut table = Table::new();
    table
        .load_style(NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header.to_vec())
        .add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    println!("{}", table.trim_fmt());
}

/// Shows that a resource is being restored, on a terminal.
pub(super) fn spinner(resource: &ResourceName) -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {prefix} {elapsed} {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner());
    let bar = ProgressBar::new_spinner()
        .with_style(style)
        .with_prefix(resource.to_string());
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// Shows a step: on a terminal in place, elsewhere one line each time the stage changes.
pub(super) fn show_step(bar: &ProgressBar, resource: &ResourceName, step: &Progress) {
    let grown = step
        .bytes
        .map(|bytes| format!(", {} on disk", HumanBytes(bytes)))
        .unwrap_or_default();
    if bar.is_hidden() && bar.message() != step.stage {
        eprintln!(
            "{resource}: {} ({:.1} s)",
            step.stage,
            Duration::from_millis(step.elapsed_ms).as_secs_f64()
        );
        bar.set_message(step.stage.clone());
    } else if !bar.is_hidden() {
        bar.set_message(format!("{}{grown}", step.stage));
    }
}

/// Asks whether to destroy `what`; where nobody can be asked, that is an error.
pub(super) fn confirmed(what: &str) -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("destroys {what}; say --yes where nobody can be asked");
    }
    eprint!("Destroy {what}? [y/N] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
