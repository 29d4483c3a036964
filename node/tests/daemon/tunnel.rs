//! The tunnel under load, from a local port through QUIC and a real node to a real Postgres: every byte arrives, and
//! nothing stays behind. `deploy/bench.sh tunnel` does the same at full size with the relay program.

use std::fs;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use zdap_proto::identity::Identity;
use zdap_proto::name::CloneId;
use zdap_proto::transport;
use zdap_proto::tunnel::Tunnel;

use crate::site::{Disk, Engine, Site, until};

#[tokio::test(flavor = "multi_thread")]
async fn copies_both_ways_idle_connections_and_many_short_ones_lose_no_byte_and_leave_nothing() {
    let test = "copies_both_ways_idle_connections_and_many_short_ones_lose_no_byte_and_leave_nothing";
    let Some(mut site) = Site::new(test, Disk::Directory, Engine::Process) else {
        return;
    };
    site.add_resource(
        "open",
        "creation: ./ok.sh\ndocker:\n  image: postgres:15\n  env: [POSTGRES_HOST_AUTH_METHOD=trust]\n  \
         cmd: [postgres, -c, max_connections=400]\n",
        &[("ok.sh", "#!/bin/sh\n")],
    );
    site.start();
    site.restore("open");
    let clone = site.clone_of("open");
    let local = listen(&site, &clone).await;
    let descriptors = Figures::of(&site).descriptors;
    let none_left = || {
        until("every connection of the node has ended", || {
            Figures::of(&site).descriptors <= descriptors
        });
    };

    // What is made once stays: threads, caches, buffers.
    short_connections(local, 1).await;
    none_left();
    let before = Figures::of(&site);

    let idle = join_all((0..IDLE).map(|_| session(local))).await;
    let with_idle = Figures::of(&site);
    assert!(
        with_idle.descriptors >= before.descriptors + IDLE,
        "{with_idle:?}"
    );
    let copied = copy_both_ways(&site, local).await;
    for connection in idle {
        answers(connection).await;
    }
    let connects = short_connections(local, SECONDS).await;

    none_left();
    let after = Figures::of(&site);
    report(&format!(
        "{IDLE} idle: {with_idle:?}\n{copied}\n{connects} connects in {SECONDS} s\nbefore {before:?}\nafter {after:?}"
    ));
    assert!(
        after.threads <= before.threads + BLOCKING_THREADS,
        "{before:?} {after:?}"
    );
    assert!(
        after.memory_kb < before.memory_kb + KEPT_KB,
        "{before:?} {after:?}"
    );
}

/// What a node holds.
#[derive(Debug)]
#[expect(dead_code, reason = "all are printed")]
struct Figures {
    descriptors: usize,
    threads: usize,
    memory_kb: usize,
    peak_kb: usize,
}

impl Figures {
    fn of(site: &Site) -> Self {
        let process = format!("/proc/{}", site.pid());
        let status = fs::read_to_string(format!("{process}/status")).unwrap();
        let number = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        Self {
            descriptors: fs::read_dir(format!("{process}/fd")).unwrap().count(),
            threads: number("Threads:"),
            memory_kb: number("VmRSS:"),
            peak_kb: number("VmHWM:"),
        }
    }
}

/// The relay, in this process.
async fn listen(site: &Site, clone: &CloneId) -> SocketAddr {
    let identity = Identity::load(&site.state()).unwrap();
    let port = fs::read_to_string(site.state().join("port")).unwrap();
    let endpoint = transport::client_endpoint().unwrap();
    let tunnel = Tunnel::new(
        endpoint,
        identity,
        vec![format!("127.0.0.1:{port}")],
        clone.clone(),
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let local = listener.local_addr().unwrap();
    tokio::spawn(async move { tunnel.serve(listener, std::future::pending()).await });
    local
}

/// Opens a session of user `postgres` and waits until it is ready for a query.
async fn session(local: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(local).await.unwrap();
    let parameters = b"user\0postgres\0database\0postgres\0\0";
    let length = u32::try_from(8 + parameters.len()).unwrap();
    let mut startup = length.to_be_bytes().to_vec();
    startup.extend_from_slice(&[0, 3, 0, 0]); // protocol 3.0
    startup.extend_from_slice(parameters);
    stream.write_all(&startup).await.unwrap();
    until_ready(&mut stream).await;
    stream
}

/// Reads messages up to `ReadyForQuery`.
async fn until_ready(stream: &mut TcpStream) {
    loop {
        let kind = stream.read_u8().await.unwrap();
        let length = stream.read_u32().await.unwrap() - 4;
        let mut body = vec![0; length as usize];
        stream.read_exact(&mut body).await.unwrap();
        match kind {
            b'Z' => return,
            b'E' => panic!("{}", String::from_utf8_lossy(&body)),
            _ => {}
        }
    }
}

/// Asks a session something, says goodbye with half of the connection, and sees the other half end.
async fn answers(mut stream: TcpStream) {
    stream.write_all(b"Q\0\0\0\x0dselect 1\0").await.unwrap();
    until_ready(&mut stream).await;
    stream.write_all(b"X\0\0\0\x04").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(stream.read(&mut [0; 16]).await.unwrap(), 0);
}

/// Fifty new sessions every second, each asked something.
async fn short_connections(local: SocketAddr, seconds: usize) -> usize {
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    let mut running = Vec::new();
    for _ in 0..seconds * 50 {
        tick.tick().await;
        running.push(tokio::spawn(async move { answers(session(local).await).await }));
    }
    let count = running.len();
    for ended in join_all(running).await {
        ended.unwrap();
    }
    count
}

/// Sends rows in with `COPY`, reads them back with `COPY`, and compares.
async fn copy_both_ways(site: &Site, local: SocketAddr) -> String {
    let file = site.directory.path().join("rows");
    let digest = shell(&format!(
        "seq -f '%020.0f abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG' {} >'{file}' && sha256sum <'{file}'",
        MEGABYTES << 14,
        file = file.display()
    ))
    .await;
    let psql = format!(
        "psql -X -q -h 127.0.0.1 -p {} -U postgres -v ON_ERROR_STOP=1",
        local.port()
    );
    shell(&format!("{psql} -c 'create unlogged table rows (line text)'")).await;
    let inwards = Instant::now();
    shell(&format!("{psql} -c 'copy rows from stdin' <'{}'", file.display())).await;
    let inwards = inwards.elapsed();
    let outwards = Instant::now();
    // Scans of large tables may begin in the middle, where another one is.
    let back = shell(&format!(
        "PGOPTIONS='-c synchronize_seqscans=off' {psql} -c 'copy rows to stdout' | sha256sum"
    ))
    .await;
    let outwards = outwards.elapsed();
    assert_eq!(digest, back, "what came back is what was sent");
    format!("{MEGABYTES} MiB in: {inwards:.1?}, out: {outwards:.1?}, the same SHA-256")
}

async fn shell(script: &str) -> String {
    let output = Command::new("bash")
        .args(["-o", "pipefail", "-c", script])
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    assert!(
        output.status.success(),
        "{script}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

#[expect(clippy::print_stderr, reason = "figures are what this is for")]
fn report(figures: &str) {
    eprintln!("{figures}");
}

const IDLE: usize = 200;
const SECONDS: usize = 3;
const MEGABYTES: usize = 64;
/// Threads for blocking work come and go.
const BLOCKING_THREADS: usize = 8;
/// The allocator keeps some of what was freed: less than one stream's window.
const KEPT_KB: usize = 24 * 1024;
