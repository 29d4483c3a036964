//! All that is printed. stdout is data, stderr is talk.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tokio::sync::oneshot;

use crate::error::{Failure, Kind};

/// Where a command's words go.
#[derive(Debug)]
pub struct Output {
    json: bool,
    quiet: bool,
    verbose: bool,
    doing: Mutex<Doing>,
    /// Whether the one JSON document is out, so that a failure after it is only told on stderr.
    has_document: AtomicBool,
}

/// What is being waited for.
#[derive(Debug, Default)]
struct Doing {
    what: String,
    /// Only on a terminal.
    spinner: Option<ProgressBar>,
}

impl Output {
    /// Prints JSON data or plain data; talks less or more.
    pub fn new(json: bool, quiet: bool, verbose: bool) -> Self {
        Self {
            json,
            quiet,
            verbose,
            doing: Mutex::default(),
            has_document: AtomicBool::new(false),
        }
    }

    /// Returns whether data is one JSON document.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Returns whether more was asked for.
    pub fn is_verbose(&self) -> bool {
        self.verbose
    }

    /// Prints what the command was run for: `text`, or with `--json` the document instead.
    pub fn data(&self, text: &str, document: &impl Serialize) -> Result<(), Failure> {
        match self.json {
            true => self.document(document),
            false if text.is_empty() => Ok(()),
            false => self.line(text),
        }
    }

    /// Prints one JSON document.
    pub fn document(&self, document: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string(document)
            .map_err(|error| Failure::caused("cannot write as JSON", &error))?;
        self.has_document.store(true, Ordering::Relaxed);
        self.line(&text)
    }

    /// Prints lines on stdout, at once.
    pub fn line(&self, text: &str) -> Result<(), Failure> {
        self.rest();
        let mut stdout = io::stdout().lock();
        let written = writeln!(stdout, "{}", text.trim_end_matches('\n')).and_then(|()| stdout.flush());
        written.map_err(|error| {
            let nobody_reads = error.kind() == io::ErrorKind::BrokenPipe;
            let kind = if nobody_reads {
                Kind::BrokenPipe
            } else {
                Kind::Failed
            };
            Failure::caused("cannot write to stdout", &error).of_kind(kind)
        })
    }

    /// Says something to the person at the terminal, unless they want quiet.
    pub fn say(&self, text: &str) {
        if !self.quiet {
            self.talk(text);
        }
    }

    /// Says what was asked for by name, also to who wants quiet.
    pub fn say_asked(&self, text: &str) {
        self.talk(text);
    }

    /// Says something that went wrong without stopping the command.
    pub fn warn(&self, text: &str) {
        self.talk(&format!("warning: {text}"));
    }

    /// Says what is being done: the spinner's text, and what a timeout names.
    pub fn doing(&self, what: impl Into<String>) {
        let mut doing = self.doing.lock().unwrap_or_else(PoisonError::into_inner);
        let doing = &mut *doing;
        doing.what = what.into();
        if self.quiet || !io::stderr().is_terminal() {
            return;
        }
        let spinner = doing.spinner.get_or_insert_with(|| {
            let spinner = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
                spinner.set_style(style);
            }
            spinner.enable_steady_tick(FRAME);
            spinner
        });
        // A spinner has one line.
        spinner.set_message(doing.what.lines().next().unwrap_or_default().to_owned());
    }

    /// Takes the spinner away.
    pub fn rest(&self) {
        let mut doing = self.doing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(spinner) = doing.spinner.take() {
            spinner.finish_and_clear();
        }
    }

    /// Returns what was last said to be done.
    pub fn waiting_for(&self) -> String {
        let doing = self.doing.lock().unwrap_or_else(PoisonError::into_inner);
        doing.what.clone()
    }

    /// Reports the end of a command that failed.
    pub fn failure(&self, failure: &Failure) -> ExitCode {
        if failure.kind != Kind::BrokenPipe {
            if self.json && !self.has_document.load(Ordering::Relaxed) {
                // Nothing more can be said when this fails too.
                let _ = self.document(&ErrorDocument::of(failure));
            }
            self.talk(&error_text(failure));
        }
        ExitCode::from(failure.kind.exit_code())
    }

    /// Asks for a line; none when nobody sits at a terminal. Can be given up: the thread that reads ends with the program.
    pub async fn ask(&self, question: &str) -> Option<String> {
        if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
            return None;
        }
        self.rest();
        let mut stderr = io::stderr();
        write!(stderr, "{question} ").and_then(|()| stderr.flush()).ok()?;
        let (answered, answer) = oneshot::channel();
        std::thread::spawn(move || {
            let mut answer = String::new();
            let read = io::stdin().read_line(&mut answer);
            // Nobody listens any more when the question was given up.
            let _ = answered.send(read.map(|_| answer));
        });
        let answer = answer.await.ok()?.ok()?;
        let answer = answer.trim();
        (!answer.is_empty()).then(|| answer.to_owned())
    }

    fn talk(&self, text: &str) {
        let doing = self.doing.lock().unwrap_or_else(PoisonError::into_inner);
        // Where stderr is closed there is nobody to tell.
        let write = || drop(writeln!(io::stderr(), "{text}"));
        match &doing.spinner {
            Some(spinner) => spinner.suspend(write),
            None => write(),
        }
    }
}

/// A failure in JSON; part of the contract.
#[derive(Serialize)]
pub(crate) struct ErrorDocument<'a> {
    error: ErrorBody<'a>,
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    kind: &'static str,
    message: &'a str,
    hint: Option<&'a str>,
}

impl<'a> ErrorDocument<'a> {
    pub(crate) fn of(failure: &'a Failure) -> Self {
        Self {
            error: ErrorBody {
                kind: failure.kind.name(),
                message: &failure.message,
                hint: failure.hint.as_deref(),
            },
        }
    }
}

fn error_text(failure: &Failure) -> String {
    match &failure.hint {
        Some(hint) => format!("error: {}\n\nhint: {hint}", failure.message),
        None => format!("error: {}", failure.message),
    }
}

/// Smooth enough for a spinner.
const FRAME: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_a_line_and_its_hint_another_after_a_blank_one() {
        let failure = Failure::new("no such thing").hinted("look elsewhere");
        assert_eq!(
            error_text(&failure),
            "error: no such thing\n\nhint: look elsewhere"
        );
        assert_eq!(error_text(&Failure::new("no such thing")), "error: no such thing");
    }

    #[test]
    fn an_error_in_json_has_its_kind_message_and_hint() {
        let failure = Failure::not_found("no clone of `orders`");
        assert_eq!(
            serde_json::to_string(&ErrorDocument::of(&failure)).unwrap(),
            r#"{"error":{"kind":"not_found","message":"no clone of `orders`","hint":null}}"#
        );
    }
}
