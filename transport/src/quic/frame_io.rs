//! Frames on streams. A length is compared with its cap before anything is allocated, and memory
//! follows the bytes that arrive.

use bytes::{Bytes, BytesMut};
use common::codec::{DecodeError, decode, encode};
use common::wire::frame::{
    ANSWER_KIND, FRAME_HEADER_BYTES, FrameError, FrameKind, HELLO_KIND, Hello, REFUSAL_KIND, Refusal, frame_header,
    read_answer_header, read_hello_header,
};
use quinn::{ReadError, ReadExactError, RecvStream, SendStream, WriteError};

use super::code::StreamCode;

/// Memory grows by at most this much before the bytes for it have arrived.
pub(crate) const STEP_BYTES: usize = 16 * 1024;

/// Why a frame was not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReadFrameError {
    /// Refused by its header.
    #[error(transparent)]
    Header(#[from] FrameError),
    /// The stream ended inside of the frame.
    #[error("the stream ended after {got} of {want} bytes")]
    Truncated {
        /// Bytes read, of the header or of the body.
        got: usize,
        /// Bytes announced.
        want: usize,
    },
    /// The stream went on after the frame.
    #[error("bytes follow the frame")]
    Trailing,
    /// The body is not a value of its type.
    #[error("malformed body: {0}")]
    Body(#[from] DecodeError),
    /// The peer broke the stream off, or the connection ended.
    #[error(transparent)]
    Lost(#[from] ReadError),
}

impl ReadFrameError {
    /// Points against a device that sent this; 0 if it is nobody's fault.
    pub(crate) fn penalty(&self) -> u32 {
        match self {
            Self::Header(FrameError::UnknownKind(_)) | Self::Truncated { .. } => 10,
            Self::Header(FrameError::Oversized { .. }) | Self::Trailing | Self::Body(_) => 50,
            Self::Lost(_) => 0,
        }
    }
}

pub(crate) async fn read_header(recv: &mut RecvStream) -> Result<[u8; FRAME_HEADER_BYTES], ReadFrameError> {
    let mut header = [0; FRAME_HEADER_BYTES];
    recv.read_exact(&mut header).await.map_err(|error| match error {
        ReadExactError::FinishedEarly(got) => ReadFrameError::Truncated {
            got,
            want: FRAME_HEADER_BYTES,
        },
        ReadExactError::ReadError(error) => ReadFrameError::Lost(error),
    })?;
    Ok(header)
}

/// Reads `len` bytes, already compared with their cap, and then the end of the stream.
pub(crate) async fn read_body(recv: &mut RecvStream, len: usize) -> Result<Bytes, ReadFrameError> {
    let mut body = BytesMut::new();
    while body.len() < len {
        let step = (len - body.len()).min(STEP_BYTES);
        match recv.read_chunk(step, true).await? {
            Some(chunk) => body.extend_from_slice(&chunk.bytes),
            None => {
                return Err(ReadFrameError::Truncated {
                    got: body.len(),
                    want: len,
                });
            }
        }
    }
    match recv.read_chunk(1, true).await? {
        None => Ok(body.freeze()),
        Some(_) => Err(ReadFrameError::Trailing),
    }
}

/// Reads the answer to a request of `kind`, or its refusal, and the end of the stream.
pub(crate) async fn read_answer(
    recv: &mut RecvStream,
    kind: FrameKind,
) -> Result<Result<Bytes, Refusal>, ReadFrameError> {
    let header = read_header(recv).await?;
    let (is_answer, len) = read_answer_header(kind, &header)?;
    let body = read_body(recv, len).await?;
    if is_answer {
        return Ok(Ok(body));
    }
    Ok(Err(decode::<Refusal>(&body)?))
}

/// Reads a hello and the end of its stream.
pub(crate) async fn read_hello(recv: &mut RecvStream) -> Result<Hello, ReadFrameError> {
    let header = read_header(recv).await?;
    let len = read_hello_header(&header)?;
    Ok(decode::<Hello>(&read_body(recv, len).await?)?)
}

/// The sending half of a stream that is broken off unless a whole frame was sent: a half frame
/// never looks finished, whenever the future that writes it is dropped.
pub(crate) struct FrameSender {
    send: SendStream,
    is_whole: bool,
}

impl FrameSender {
    pub(crate) fn new(send: SendStream) -> Self {
        Self { send, is_whole: false }
    }

    pub(crate) fn set_priority(&self, priority: i32) {
        // Fails only where the stream is closed already, and then there is nothing to order.
        let _ = self.send.set_priority(priority);
    }

    async fn write(&mut self, kind: u8, body: Bytes) -> Result<(), WriteError> {
        let header = Bytes::copy_from_slice(&frame_header(kind, body.len()));
        self.send.write_all_chunks(&mut [header, body]).await?;
        self.is_whole = true;
        // Fails only where the peer stopped the stream, which `write` reports next time or never matters.
        let _ = self.send.finish();
        Ok(())
    }

    pub(crate) async fn request(&mut self, kind: FrameKind, body: Bytes) -> Result<(), WriteError> {
        self.write(kind.byte(), body).await
    }

    pub(crate) async fn answer(&mut self, answer: Result<Bytes, Refusal>) -> Result<(), WriteError> {
        match answer {
            Ok(body) => self.write(ANSWER_KIND, body).await,
            Err(refusal) => self.write(REFUSAL_KIND, encode(&refusal).into()).await,
        }
    }

    pub(crate) async fn hello(&mut self, hello: &Hello) -> Result<(), WriteError> {
        self.write(HELLO_KIND, encode(hello).into()).await
    }
}

impl Drop for FrameSender {
    fn drop(&mut self) {
        if !self.is_whole {
            // Fails only where the stream is closed already.
            let _ = self.send.reset(StreamCode::Deadline.wire());
        }
    }
}
