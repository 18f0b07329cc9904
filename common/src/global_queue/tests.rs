//! Claims about the global queue.
