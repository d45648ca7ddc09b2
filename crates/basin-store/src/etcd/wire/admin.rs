//! Pure. Members and their upkeep.

use bytes::Bytes;
use prost::Message;

use super::Header;

#[derive(Clone, PartialEq, Message)]
pub(crate) struct WireMember {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(string, repeated, tag = "3")]
    pub peer_urls: Vec<String>,
    #[prost(string, repeated, tag = "4")]
    pub client_urls: Vec<String>,
    #[prost(bool, tag = "5")]
    pub learner: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct MemberAddRequest {
    #[prost(string, repeated, tag = "1")]
    pub peer_urls: Vec<String>,
    #[prost(bool, tag = "2")]
    pub learner: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct MemberAddResponse {
    #[prost(message, optional, tag = "2")]
    pub member: Option<WireMember>,
    #[prost(message, repeated, tag = "3")]
    pub members: Vec<WireMember>,
}

/// To remove it, to promote it, or to make it the leader.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct MemberRequest {
    #[prost(uint64, tag = "1")]
    pub id: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct MemberListRequest {
    /// From etcd 3.5 on; 3.4 answers from what the member knows.
    #[prost(bool, tag = "1")]
    pub linearizable: bool,
}

/// Of list, promote and remove.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct MembersResponse {
    #[prost(message, repeated, tag = "2")]
    pub members: Vec<WireMember>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    pub header: Option<Header>,
    #[prost(string, tag = "2")]
    pub version: String,
    #[prost(int64, tag = "3")]
    pub db_size: i64,
    #[prost(uint64, tag = "4")]
    pub leader: u64,
    #[prost(uint64, tag = "5")]
    pub raft_index: u64,
    #[prost(uint64, tag = "7")]
    pub raft_applied_index: u64,
    #[prost(string, repeated, tag = "8")]
    pub errors: Vec<String>,
    #[prost(int64, tag = "9")]
    pub db_size_in_use: i64,
    #[prost(bool, tag = "10")]
    pub learner: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct SnapshotResponse {
    #[prost(uint64, tag = "2")]
    pub remaining_bytes: u64,
    #[prost(bytes = "bytes", tag = "3")]
    pub blob: Bytes,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct AlarmRequest {
    /// [`ALARM_GET`] or [`ALARM_DEACTIVATE`].
    #[prost(int32, tag = "1")]
    pub action: i32,
    /// Zero: of all members.
    #[prost(uint64, tag = "2")]
    pub member: u64,
    #[prost(int32, tag = "3")]
    pub alarm: i32,
}

pub(crate) const ALARM_GET: i32 = 0;
pub(crate) const ALARM_DEACTIVATE: i32 = 2;
/// The database has reached its quota: only reads and deletes are taken.
pub(crate) const ALARM_NOSPACE: i32 = 1;

#[derive(Clone, PartialEq, Message)]
pub(crate) struct AlarmMember {
    #[prost(uint64, tag = "1")]
    pub member: u64,
    #[prost(int32, tag = "2")]
    pub alarm: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct AlarmResponse {
    #[prost(message, repeated, tag = "2")]
    pub alarms: Vec<AlarmMember>,
}
