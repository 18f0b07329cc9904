//! Claims about proof files.
