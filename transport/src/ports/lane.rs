//! Many requests on one stream, each sent before the last one is answered.

use bytes::Bytes;
use common::wire::frame::Refusal;
use futures::future::BoxFuture;

use super::CallError;

/// One side's end of a lane. The caller sends requests and receives answers; the service receives
/// requests and sends answers. Frames arrive whole, in order, once; or the lane is broken.
pub struct Lane {
    /// Sends frames.
    pub sender: Box<dyn LaneSender>,
    /// Receives frames.
    pub receiver: Box<dyn LaneReceiver>,
}

/// The sending half. Dropped without [`LaneSender::end`] it breaks the lane off.
pub trait LaneSender: Send + 'static {
    /// Sends one frame. Waits while the peer does not take it, for a bounded time. A future that is
    /// dropped half-way breaks the lane.
    ///
    /// # Errors
    /// The lane is broken, or the peer took nothing for too long.
    ///
    /// # Panics
    /// If the frame is longer than its kind allows: the caller builds bounded bodies.
    fn send(&mut self, body: Bytes) -> BoxFuture<'_, Result<(), CallError>>;

    /// Ends this direction in good order, on the answering side optionally with a refusal as last answer.
    fn end(&mut self, refusal: Option<Refusal>) -> BoxFuture<'_, ()>;
}

/// The receiving half. Dropped, it tells the peer that nothing more is wanted.
pub trait LaneReceiver: Send + 'static {
    /// The next frame; `None` when the peer has ended its direction in good order. Waits without
    /// end for a frame to begin, but a frame that has begun must go on. A future that is dropped loses
    /// nothing: the next one goes on where it stood.
    ///
    /// # Errors
    /// [`CallError::Refused`] if the service refused, otherwise the lane is broken; both are final.
    fn recv(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, CallError>>;
}
