//! The agent's end of the local socket.
//!
//! # Rules
//! * Whoever opens the socket acts as the drone, so it has mode 0600 from the moment it exists, and a
//!   peer of another user is turned away.
//! * A socket left behind by a dead process is replaced; one that a living process answers is not.

use std::{
    io,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::Path,
    sync::Arc,
    time::Duration,
};

use futures::FutureExt;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    time::timeout,
};

use super::{
    LINE_BYTES_MAX,
    message::{Answer, ErrorCode, LocalError, Request, answer_to_line},
};
use crate::ports::{BoxFuture, Spawner};

/// Open connections.
pub const CONNECTIONS_MAX: usize = 32;

/// An answer is written within this time, or the connection ends.
const WRITE_DEADLINE: Duration = Duration::from_secs(10);

/// Answers requests. Each answer comes within a deadline of the handler's own.
pub trait LocalHandler: Send + Sync + 'static {
    /// Handles one request of the drone's own software.
    fn handle(&self, request: Request) -> BoxFuture<Answer>;
}

/// Opens the socket at `path`.
///
/// # Errors
/// [`io::ErrorKind::AddrInUse`] if a living process answers there; else of the file system.
pub async fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            let text = format!("{} exists and is no socket", path.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
        }
        Ok(_) => {
            if UnixStream::connect(path).await.is_ok() {
                let text = format!("another process answers at {}", path.display());
                return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
            }
            std::fs::remove_file(path)?;
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    // Bound under a name that nobody knows, restricted, then renamed: never open to others.
    let hidden = path.with_extension("sock-new");
    match std::fs::remove_file(&hidden) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(&hidden)?;
    std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&hidden, path)?;
    Ok(listener)
}

/// Accepts connections until the process ends. Run it as a task.
pub async fn serve(listener: UnixListener, handler: Arc<dyn LocalHandler>, spawner: Arc<dyn Spawner>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let own_uid = rustix::process::geteuid().as_raw();
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, most likely: others must close first.
                tracing::warn!(%error, "the local socket accepts no connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let peer_uid = stream.peer_cred().map(|peer| peer.uid());
        if !matches!(peer_uid, Ok(uid) if uid == own_uid || uid == 0) {
            tracing::warn!(
                ?peer_uid,
                own_uid,
                "a process of another user was turned away at the local socket"
            );
            continue;
        }
        let handler = handler.clone();
        let connection = async move {
            if let Err(error) = serve_connection(stream, &*handler).await {
                tracing::debug!(%error, "a connection of the local socket ended");
            }
            drop(slot);
        };
        spawner.spawn("local-connection", connection.boxed());
    }
}

async fn serve_connection(stream: UnixStream, handler: &dyn LocalHandler) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    loop {
        let mut line = Vec::new();
        let read = (&mut reader)
            .take(LINE_BYTES_MAX as u64)
            .read_until(b'\n', &mut line)
            .await?;
        if read == 0 {
            return Ok(());
        }
        let is_whole = line.last() == Some(&b'\n');
        let answer = if is_whole {
            answer_line(&line, handler).await
        } else {
            invalid(format!("a line ends after at most {LINE_BYTES_MAX} bytes"))
        };
        let mut text = answer_to_line(&answer);
        text.push('\n');
        timeout(WRITE_DEADLINE, writer.write_all(text.as_bytes()))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        if !is_whole {
            return Ok(());
        }
    }
}

async fn answer_line(line: &[u8], handler: &dyn LocalHandler) -> Answer {
    let Ok(text) = std::str::from_utf8(line) else {
        return invalid("the request is not UTF-8");
    };
    match Request::from_line(text.trim_end()) {
        Ok(request) => handler.handle(request).await,
        Err(error) => invalid(error),
    }
}

fn invalid(reason: impl std::fmt::Display) -> Answer {
    Err(LocalError::new(ErrorCode::Invalid, reason))
}

#[cfg(test)]
mod tests {
    use common::ids::{EntryId, LogIndex};

    use super::*;
    use crate::{
        local::{Reply, client::LocalClient},
        machine::{OnPanic, TokioSpawner},
    };

    struct Echo;

    impl LocalHandler for Echo {
        fn handle(&self, request: Request) -> BoxFuture<Answer> {
            let answer = match request {
                Request::Renew => Ok(Reply::written(EntryId([1; 32]), LogIndex(3), "granted")),
                other => Err(LocalError::new(ErrorCode::Unavailable, other.verb())),
            };
            async move { answer }.boxed()
        }
    }

    const DEADLINE: Duration = Duration::from_secs(5);

    async fn serving() -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("local.sock");
        let listener = bind(&path).await.unwrap();
        let spawner = Arc::new(TokioSpawner::new(tokio::runtime::Handle::current(), OnPanic::Log));
        spawner.spawn("serve", serve(listener, Arc::new(Echo), spawner.clone()).boxed());
        (dir, path)
    }

    #[tokio::test]
    async fn requests_of_one_connection_are_answered_in_order() {
        let (_dir, path) = serving().await;
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let mut client = LocalClient::connect(&path).await.unwrap();
        let renewed = client.call(&Request::Renew, DEADLINE).await.unwrap().unwrap();
        assert_eq!(renewed.index, Some(3));
        let refused = client.call(&Request::Status, DEADLINE).await.unwrap().unwrap_err();
        assert_eq!(
            (refused.code, refused.reason.as_str()),
            (ErrorCode::Unavailable, "status")
        );
    }

    #[tokio::test]
    async fn malformed_line_is_answered_and_an_endless_one_ends_the_connection() {
        let (_dir, path) = serving().await;
        let mut stream = UnixStream::connect(&path).await.unwrap();
        stream.write_all(b"{\"verb\":\"fly\"}\n\xff\n").await.unwrap();
        let mut reader = BufReader::new(&mut stream);
        let mut line = String::new();
        for _ in 0..2 {
            line.clear();
            reader.read_line(&mut line).await.unwrap();
            assert!(line.contains("\"invalid\""), "{line}");
        }
        let long = vec![b' '; LINE_BYTES_MAX];
        stream.write_all(&long).await.unwrap();
        let mut rest = String::new();
        BufReader::new(&mut stream).read_to_string(&mut rest).await.unwrap();
        assert!(rest.contains("a line ends"), "{rest}");
    }

    #[tokio::test]
    async fn socket_of_a_living_process_is_kept_and_a_dead_ones_is_replaced() {
        let (_dir, path) = serving().await;
        assert_eq!(bind(&path).await.unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let dead = path.with_file_name("dead.sock");
        drop(UnixListener::bind(&dead).unwrap());
        assert!(dead.exists());
        bind(&dead).await.unwrap();
        std::fs::write(path.with_file_name("file"), b"x").unwrap();
        assert!(bind(&path.with_file_name("file")).await.is_err());
    }
}
