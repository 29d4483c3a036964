//! What one node asks another of the cluster, over a stream: to compare all they know, for a catalog, for a name.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::{ConnectionError, RecvStream, SendStream};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};
use zdap_proto::frame::{self, FrameError, REQUEST_CAP};
use zdap_proto::name::NodeName;
use zdap_proto::refusal::chain;

use super::driver::Command;
use super::links::{LinkError, Links};
use super::{Knowledge, MemberState};
use crate::catalog::{Catalog, CatalogError, Update, Version};
use crate::cluster::{Board, Pulling};

/// What is asked.
#[derive(Debug, Serialize, Deserialize)]
enum Ask {
    /// Do we know the same? Answer: nothing if so, else [`Knowledge`]; then the asker's.
    Compare {
        /// What the asker knows, as a number.
        fingerprint: u64,
    },
    /// What follows this version of a node's catalog? Answer: an [`Update`], if there is one.
    Pull {
        /// Whose.
        of: NodeName,
        /// What the asker holds.
        held: Option<Version>,
    },
    /// Who goes by this name? Answer: its address, unless it is down or unknown.
    Who {
        /// The name.
        name: NodeName,
    },
}

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// There is no connection.
    #[error("the node was not reached")]
    Link(#[source] LinkError),
    /// The connection has ended.
    #[error("the connection has ended")]
    Lost(#[source] ConnectionError),
    /// The stream broke, or the other speaks another version.
    #[error("what came was not understood")]
    Frame(#[source] FrameError),
    /// The other takes too long.
    #[error("no answer within {} s", ANSWER.as_secs())]
    Slow,
    /// The answer is of no use.
    #[error("the catalog was not taken over")]
    Catalog(#[source] CatalogError),
    /// The other does not have what is asked for.
    #[error("the node does not have it")]
    NotThere,
    /// This node is about to end.
    #[error("the gossip has ended")]
    Ended,
}

/// Compares all that this node knows with what another does, and takes over what it is missing.
pub(super) async fn compare(
    links: Links,
    at: SocketAddr,
    with: NodeName,
    fingerprint: u64,
    commands: mpsc::Sender<Command>,
) {
    let compare = async {
        let (mut send, mut receive) = ask(&links, at, &Ask::Compare { fingerprint }).await?;
        let Some(theirs) = read::<Option<Knowledge>>(&mut receive, KNOWLEDGE_CAP).await? else {
            return Ok(());
        };
        let ours = knowledge(&commands, None).await?;
        write(&mut send, &ours, KNOWLEDGE_CAP).await?;
        let from = with.clone();
        tell(
            &commands,
            Command::Learn {
                from,
                knowledge: theirs,
            },
        )
        .await?;
        delivered(send).await
    };
    if let Err(error) = within(ANSWER, compare).await {
        tracing::debug!(%with, %at, error = chain(&error), "compare");
    }
}

/// Pulls a catalog after a while, from the first of `sources` that has it.
pub(super) async fn pull(links: Links, pulling: Pulling, sources: Vec<SocketAddr>, after: Duration) {
    sleep(after).await;
    for source in sources {
        match within(ANSWER, pull_from(&links, &pulling, source)).await {
            Ok(()) => return,
            Err(error) => {
                tracing::debug!(of = %pulling.of, %source, error = chain(&error), "pull a catalog")
            }
        }
    }
}

/// Until it is the one that the newest digest tells of, or no newer one is there.
async fn pull_from(links: &Links, pulling: &Pulling, source: SocketAddr) -> Result<(), AskError> {
    let mut is_whole = false;
    while let Some((wanted, held)) = pulling.wanted() {
        let version = held.as_ref().map(|held| held.version).filter(|_| !is_whole);
        let of = pulling.of.clone();
        let (_, mut receive) = ask(links, source, &Ask::Pull { of, held: version }).await?;
        let update = read::<Option<Update>>(&mut receive, CATALOG_CAP).await?;
        let update = update.ok_or(AskError::NotThere)?;
        match Catalog::following(held.as_deref(), update, wanted) {
            Ok(catalog) => pulling.keep(catalog),
            Err(CatalogError::Hash | CatalogError::Gap { .. }) if !is_whole => is_whole = true,
            Err(error) => return Err(AskError::Catalog(error)),
        }
    }
    Ok(())
}

/// Asks the node at an address where `name` is.
pub(crate) async fn who(
    links: &Links,
    at: SocketAddr,
    name: &NodeName,
) -> Result<Option<SocketAddr>, AskError> {
    let ask = async {
        let (_, mut receive) = ask(links, at, &Ask::Who { name: name.clone() }).await?;
        read(&mut receive, REQUEST_CAP).await
    };
    within(ANSWER, ask).await
}

/// Answers one stream.
pub(crate) async fn answer(
    board: &Arc<Board>,
    commands: &mpsc::Sender<Command>,
    from: &NodeName,
    mut send: SendStream,
    mut receive: RecvStream,
) -> Result<(), AskError> {
    let answer = async {
        match read(&mut receive, REQUEST_CAP).await? {
            Ask::Compare { fingerprint } => {
                let ours = knowledge(commands, Some(fingerprint)).await?;
                let is_same = ours.is_none();
                write(&mut send, &ours, KNOWLEDGE_CAP).await?;
                if !is_same && let Some(theirs) = read(&mut receive, KNOWLEDGE_CAP).await? {
                    let from = from.clone();
                    tell(
                        commands,
                        Command::Learn {
                            from,
                            knowledge: theirs,
                        },
                    )
                    .await?;
                }
            }
            Ask::Pull { of, held } => {
                let update = update(board, &of, held);
                write(&mut send, &update, CATALOG_CAP).await?;
            }
            Ask::Who { name } => {
                let view = board.view();
                let seen = view.members.get(&name);
                let living = seen.filter(|seen| seen.state != MemberState::Down);
                write(&mut send, &living.map(|seen| seen.address), REQUEST_CAP).await?;
            }
        }
        delivered(send).await
    };
    within(ANSWER, answer).await
}

/// Of this node's own catalog all that follows; of another's, the whole.
fn update(board: &Board, of: &NodeName, held: Option<Version>) -> Option<Update> {
    let view = board.view();
    if *of == view.me {
        return Some(board.ledger().since(held));
    }
    let catalog = view.members.get(of)?.catalog.as_ref()?;
    (held != Some(catalog.version)).then(|| catalog.whole())
}

async fn ask(links: &Links, at: SocketAddr, ask: &Ask) -> Result<(SendStream, RecvStream), AskError> {
    let connection = links.connection(at).await.map_err(AskError::Link)?;
    let (mut send, receive) = connection.open_bi().await.map_err(AskError::Lost)?;
    write(&mut send, ask, REQUEST_CAP).await?;
    Ok((send, receive))
}

/// Returns what this node knows, unless that is what the fingerprint says.
async fn knowledge(
    commands: &mpsc::Sender<Command>,
    unless: Option<u64>,
) -> Result<Option<Knowledge>, AskError> {
    let (reply, known) = oneshot::channel();
    tell(commands, Command::Know { unless, reply }).await?;
    known.await.map_err(|_| AskError::Ended)
}

/// A stream that is dropped is reset: waits until all has arrived, or is not wanted any more.
async fn delivered(mut send: SendStream) -> Result<(), AskError> {
    let _ = send.finish();
    let _ = send.stopped().await;
    Ok(())
}

async fn tell(commands: &mpsc::Sender<Command>, command: Command) -> Result<(), AskError> {
    commands.send(command).await.map_err(|_| AskError::Ended)
}

async fn read<T: serde::de::DeserializeOwned>(receive: &mut RecvStream, cap: usize) -> Result<T, AskError> {
    frame::read(receive, cap).await.map_err(AskError::Frame)
}

async fn write<T: Serialize>(send: &mut SendStream, message: &T, cap: usize) -> Result<(), AskError> {
    frame::write(send, message, cap).await.map_err(AskError::Frame)
}

async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, AskError>>) -> Result<T, AskError> {
    timeout(limit, work).await.unwrap_or(Err(AskError::Slow))
}

/// For some hundred kilobytes over a slow line.
const ANSWER: Duration = Duration::from_secs(5);
/// Some hundred bytes for each of thousands of nodes.
const KNOWLEDGE_CAP: usize = 1024 * 1024;
/// Sixty bytes for each of tens of thousands of snapshots.
const CATALOG_CAP: usize = 8 * 1024 * 1024;
