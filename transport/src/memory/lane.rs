//! Lanes between shells of one process.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use common::wire::frame::Refusal;
use futures::{FutureExt as _, future::BoxFuture};
use tokio::{sync::mpsc, time::timeout};

use crate::ports::{CallError, Lane, LaneReceiver, LaneSender};

/// Frames under way in one direction.
const FRAMES_MAX: usize = 64;
/// A frame that the other end does not take.
const TAKEN_WITHIN: Duration = Duration::from_secs(10);

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It arrives.
    Arrives,
    /// It is lost, and with it everything behind it: a stream has no gaps.
    IsLost,
    /// The lane breaks.
    Breaks,
}

enum Frame {
    Body(Bytes),
    End(Option<Refusal>),
}

/// Asked for each frame: whether it goes from the opener to the server.
pub type Weather = Arc<dyn Fn(bool) -> Fate + Send + Sync>;

/// Both ends of a lane: the opener's, whose frames are at most `request_bytes_max` bytes long, and the
/// server's, whose are at most `answer_bytes_max`.
#[must_use]
pub fn lane_pair(request_bytes_max: usize, answer_bytes_max: usize, weather: Weather) -> (Lane, Lane) {
    let (to_server, from_opener) = mpsc::channel(FRAMES_MAX);
    let (to_opener, from_server) = mpsc::channel(FRAMES_MAX);
    let end = |frames, is_opener, body_bytes_max, received| Lane {
        sender: Box::new(Sender {
            frames: Some(frames),
            is_opener,
            body_bytes_max,
            has_lost: false,
            weather: weather.clone(),
        }),
        receiver: Box::new(Receiver {
            frames: received,
            end: None,
        }),
    };
    (
        end(to_server, true, request_bytes_max, from_server),
        end(to_opener, false, answer_bytes_max, from_opener),
    )
}

struct Sender {
    /// `None` after the end.
    frames: Option<mpsc::Sender<Frame>>,
    is_opener: bool,
    body_bytes_max: usize,
    has_lost: bool,
    weather: Weather,
}

impl Sender {
    async fn put(&mut self, frame: Frame) -> Result<(), CallError> {
        let gone = || CallError::Broken("the other end is gone".into());
        let frames = self.frames.as_ref().ok_or_else(gone)?;
        match (self.weather)(self.is_opener) {
            Fate::Breaks => {
                self.frames = None;
                return Err(CallError::Broken("the link was cut".into()));
            }
            Fate::IsLost => self.has_lost = true,
            Fate::Arrives => {}
        }
        if self.has_lost {
            return Ok(());
        }
        timeout(TAKEN_WITHIN, frames.send(frame))
            .await
            .map_err(|_| CallError::Timeout(TAKEN_WITHIN))?
            .map_err(|_| gone())
    }
}

impl LaneSender for Sender {
    fn send(&mut self, body: Bytes) -> BoxFuture<'_, Result<(), CallError>> {
        assert!(body.len() <= self.body_bytes_max, "the caller builds bounded bodies");
        self.put(Frame::Body(body)).boxed()
    }

    fn end(&mut self, refusal: Option<Refusal>) -> BoxFuture<'_, ()> {
        async move {
            // Fails only where nobody listens any more.
            let _ = self.put(Frame::End(refusal)).await;
            self.frames = None;
        }
        .boxed()
    }
}

struct Receiver {
    frames: mpsc::Receiver<Frame>,
    end: Option<Result<(), CallError>>,
}

impl LaneReceiver for Receiver {
    fn recv(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, CallError>> {
        async move {
            if self.end.is_none() {
                self.end = Some(match self.frames.recv().await {
                    Some(Frame::Body(body)) => return Ok(Some(body)),
                    Some(Frame::End(None)) => Ok(()),
                    Some(Frame::End(Some(refusal))) => Err(CallError::Refused(refusal)),
                    None => Err(CallError::Broken("the other end is gone".into())),
                });
            }
            self.end.clone().expect("set above").map(|()| None)
        }
        .boxed()
    }
}
