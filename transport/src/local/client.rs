//! The on-board software's end of the local socket.

use std::{io, path::Path, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::timeout,
};

use super::{
    LINE_BYTES_MAX,
    message::{Answer, Request, answer_from_line},
};

/// How a call failed before an answer came.
#[derive(Debug, thiserror::Error)]
pub enum LocalCallError {
    /// No agent listens there: nothing was sent.
    #[error("no agent answers at {path}: {source}")]
    Connect {
        /// The socket.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The connection broke under the request: it may have been carried out.
    #[error("the connection to the agent broke: {0}; the request may have been carried out")]
    Broken(io::Error),
    /// No answer in time: the request may have been carried out.
    #[error("the agent did not answer within {0:?}; the request may have been carried out")]
    Timeout(Duration),
    /// The answer is not of this protocol.
    #[error("the agent's answer is malformed: {0}")]
    Malformed(String),
}

/// One connection. After any error the caller drops it and connects anew.
#[derive(Debug)]
pub struct LocalClient {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

impl LocalClient {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// [`LocalCallError::Connect`].
    pub async fn connect(path: &Path) -> Result<Self, LocalCallError> {
        let failed = |source| LocalCallError::Connect {
            path: path.display().to_string(),
            source,
        };
        let stream = UnixStream::connect(path).await.map_err(failed)?;
        let (reader, writer) = stream.into_split();
        Ok(Self {
            reader: BufReader::new(reader),
            writer,
        })
    }

    /// Sends one request and waits at most `deadline` for its answer.
    ///
    /// # Errors
    /// [`LocalCallError`]: drop this connection, a late answer would be taken for the next one's.
    pub async fn call(&mut self, request: &Request, deadline: Duration) -> Result<Answer, LocalCallError> {
        match timeout(deadline, self.exchange(request)).await {
            Ok(answer) => answer,
            Err(_) => Err(LocalCallError::Timeout(deadline)),
        }
    }

    async fn exchange(&mut self, request: &Request) -> Result<Answer, LocalCallError> {
        let mut line = request.to_line();
        line.push('\n');
        self.writer
            .write_all(line.as_bytes())
            .await
            .map_err(LocalCallError::Broken)?;
        let mut answer = Vec::new();
        let read = (&mut self.reader)
            .take(LINE_BYTES_MAX as u64)
            .read_until(b'\n', &mut answer)
            .await
            .map_err(LocalCallError::Broken)?;
        if read == 0 || answer.last() != Some(&b'\n') {
            return Err(LocalCallError::Broken(io::ErrorKind::UnexpectedEof.into()));
        }
        let text = std::str::from_utf8(&answer).map_err(|e| LocalCallError::Malformed(e.to_string()))?;
        answer_from_line(text).map_err(LocalCallError::Malformed)
    }
}
