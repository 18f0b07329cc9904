//! How one room stops the whole validator: the first reason counts, and everybody sees it.

use std::sync::Arc;

use transport::watch::Watch;

use crate::exit::Stop;

/// Why the validator must stop, once there is a reason. Clones see the same.
#[derive(Clone)]
pub struct Halt(Watch<Option<Arc<Stop>>>);

impl Default for Halt {
    fn default() -> Self {
        Self(Watch::new(None))
    }
}

impl Halt {
    /// Stops the validator. Later reasons are logged only.
    pub fn stop(&self, reason: Stop) {
        tracing::error!(exit_code = reason.exit_code(), "stopping: {reason}");
        if self.0.get().is_none() {
            self.0.set(Some(Arc::new(reason)));
        }
    }

    /// The reason, if there is one.
    #[must_use]
    pub fn reason(&self) -> Option<Arc<Stop>> {
        self.0.get()
    }

    /// Waits for a reason; for ever if none comes.
    pub async fn stopped(&self) -> Arc<Stop> {
        self.0
            .wait_until(Option::is_some)
            .await
            .expect("waited until there is a reason")
    }
}
