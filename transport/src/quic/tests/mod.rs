pub(crate) mod fleet;
