//! Synchronisation between ranks.
