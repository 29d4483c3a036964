//! What whoever waits for a restore is told.

use std::time::Instant;

use tokio::sync::watch;
use zdap_proto::message::Progress;
use zdap_proto::name::SnapshotId;
use zdap_proto::refusal::Refusal;

/// How far a restore has come.
#[derive(Debug, Clone)]
pub enum RestoreState {
    /// Still at it.
    Running(Progress),
    /// Over.
    Ended(Result<SnapshotId, Refusal>),
}

/// Says where a restore is.
pub(super) struct Stage {
    began: Instant,
    state: watch::Sender<RestoreState>,
}

impl Stage {
    pub(super) fn new() -> Self {
        let progress = Progress {
            stage: "waiting".to_owned(),
            elapsed_ms: 0,
            bytes: None,
        };
        Self {
            began: Instant::now(),
            state: watch::Sender::new(RestoreState::Running(progress)),
        }
    }

    pub(super) fn watch(&self) -> watch::Receiver<RestoreState> {
        self.state.subscribe()
    }

    pub(super) fn enter(&self, stage: &str) {
        tracing::info!(stage, "restore");
        let elapsed_ms = self.elapsed_ms();
        self.state.send_replace(RestoreState::Running(Progress {
            stage: stage.to_owned(),
            elapsed_ms,
            bytes: None,
        }));
    }

    pub(super) fn grown_to(&self, bytes: u64) {
        let elapsed_ms = self.elapsed_ms();
        self.state.send_modify(|state| {
            if let RestoreState::Running(progress) = state {
                *progress = Progress {
                    elapsed_ms,
                    bytes: Some(bytes),
                    ..progress.clone()
                };
            }
        });
    }

    pub(super) fn is_watched(&self) -> bool {
        // One receiver is the list of restores itself.
        self.state.receiver_count() > 1
    }

    pub(super) fn end(&self, result: Result<SnapshotId, Refusal>) {
        if let Ok(snapshot) = &result {
            tracing::info!(%snapshot, elapsed = ?self.began.elapsed(), "restore is done");
        }
        self.state.send_replace(RestoreState::Ended(result));
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}
