//! Every bound of a QUIC endpoint, set explicitly: the library's defaults allow hundreds of megabytes
//! per connection.
//!
//! Worst-case receive memory is `connections x connection window`: 32 MiB on a drone; on a validator
//! 256 MiB, and 4 MiB more for each fellow validator.

use std::{sync::Arc, time::Duration};

use quinn::{IdleTimeout, ServerConfig, TransportConfig, VarInt};

use super::Role;

const KIB: u32 = 1024;
const MIB: u32 = 1024 * KIB;

/// Handshake and hello together.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
/// A request's bytes, and likewise an answer's.
pub const STREAM_DEADLINE: Duration = Duration::from_secs(10);
/// A service's work on one request; beyond it the caller is refused.
pub const SERVICE_DEADLINE: Duration = Duration::from_secs(30);
/// A silent connection is given up. Calls that get no answer dial beside it long before (`table`).
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Silence is broken this often.
pub const KEEP_ALIVE: Duration = Duration::from_secs(3);
/// Assumed before the first measurement: a lost first packet is sent again after three times this.
pub const INITIAL_RTT: Duration = Duration::from_millis(100);

/// The bounds of one endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections that others made to us.
    pub accepted_max: usize,
    /// Of them, connections of operators: they must not take the place of peers.
    pub accepted_op_max: usize,
    /// Handshakes going on; above half of it addresses are validated first, above all refused.
    pub half_open_max: usize,
    /// Requests in hand per connection.
    pub requests_per_connection_max: u32,
    /// Bytes received and not yet read, per stream.
    pub stream_window: u32,
    /// Bytes received and not yet read, per connection.
    pub connection_window: u32,
    /// The same for a connection between validators.
    pub bft_connection_window: u32,
    /// Bytes sent and not yet acknowledged, per connection.
    pub send_window: u64,
    /// First packets waiting to be looked at.
    pub incoming_max: usize,
    /// Bytes kept for one of them.
    pub incoming_bytes_max: u64,
    /// Bytes kept for all of them.
    pub incoming_bytes_total_max: u64,
    /// Whether a peer may go on from another address (radio hand-over).
    pub may_migrate: bool,
    /// [`HANDSHAKE_DEADLINE`].
    pub handshake_deadline: Duration,
    /// [`STREAM_DEADLINE`].
    pub stream_deadline: Duration,
    /// [`SERVICE_DEADLINE`].
    pub service_deadline: Duration,
}

/// Packets that a peer may leave without an acknowledgement of its own: mostly an answer is on its way, and
/// takes it along (draft-ietf-quic-ack-frequency). A delay of 25 ms bounds the wait all the same.
const ACK_ELICITING_THRESHOLD: u32 = 8;

impl Limits {
    /// The bounds of a role.
    #[must_use]
    pub const fn of(role: Role) -> Self {
        match role {
            Role::Drone | Role::Client => Self {
                accepted_max: 32,
                accepted_op_max: 8,
                half_open_max: 32,
                requests_per_connection_max: 16,
                stream_window: 256 * KIB,
                connection_window: MIB,
                bft_connection_window: MIB,
                send_window: 2 * MIB as u64,
                incoming_max: 64,
                incoming_bytes_max: 16 * KIB as u64,
                incoming_bytes_total_max: MIB as u64,
                may_migrate: true,
                handshake_deadline: HANDSHAKE_DEADLINE,
                stream_deadline: STREAM_DEADLINE,
                service_deadline: SERVICE_DEADLINE,
            },
            Role::Validator => Self {
                accepted_max: 512,
                accepted_op_max: 128,
                half_open_max: 256,
                requests_per_connection_max: 32,
                stream_window: MIB,
                connection_window: 512 * KIB,
                bft_connection_window: 4 * MIB,
                send_window: 8 * MIB as u64,
                incoming_max: 512,
                incoming_bytes_max: 16 * KIB as u64,
                incoming_bytes_total_max: 8 * MIB as u64,
                may_migrate: false,
                handshake_deadline: HANDSHAKE_DEADLINE,
                stream_deadline: STREAM_DEADLINE,
                service_deadline: SERVICE_DEADLINE,
            },
        }
    }

    /// Before the hello a peer gets `streams` streams (one where it dialled us, none where we
    /// dialled it); [`super::Shared::open_for_requests`] raises that for an accepted peer.
    pub(crate) fn transport_config(&self, streams: u32) -> Arc<TransportConfig> {
        let mut config = TransportConfig::default();
        let idle = IdleTimeout::try_from(IDLE_TIMEOUT).expect("ten seconds fit the wire");
        config
            .max_concurrent_bidi_streams(VarInt::from_u32(streams))
            // No protocol uses streams of one direction.
            .max_concurrent_uni_streams(VarInt::from_u32(0))
            .stream_receive_window(VarInt::from_u32(self.stream_window))
            .receive_window(VarInt::from_u32(self.connection_window))
            .send_window(self.send_window)
            .datagram_receive_buffer_size(None)
            .datagram_send_buffer_size(0)
            .max_idle_timeout(Some(idle))
            .keep_alive_interval(Some(KEEP_ALIVE))
            .initial_rtt(INITIAL_RTT)
            .crypto_buffer_size(16 * KIB as usize);
        let mut acks = quinn::AckFrequencyConfig::default();
        acks.ack_eliciting_threshold(VarInt::from_u32(ACK_ELICITING_THRESHOLD));
        config.ack_frequency_config(Some(acks));
        Arc::new(config)
    }

    pub(crate) fn apply_to_server(&self, config: &mut ServerConfig) {
        config
            .transport_config(self.transport_config(1))
            .max_incoming(self.incoming_max)
            .incoming_buffer_size(self.incoming_bytes_max)
            .incoming_buffer_size_total(self.incoming_bytes_total_max)
            .migration(self.may_migrate);
    }
}
