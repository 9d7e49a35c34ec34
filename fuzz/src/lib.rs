//! What the targets share: tungstenite as the oracle of the WebSocket targets, and the naive models of `hub_ops`.
#![forbid(unsafe_code)]

pub mod hub_models;
pub mod oracle;
