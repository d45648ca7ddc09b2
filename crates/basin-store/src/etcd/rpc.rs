//! gRPC calls to one member.

use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use prost::Message;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstCodec;

/// One of etcd's methods.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Method {
    path: &'static str,
    /// Refused at once by a member that knows of no leader, instead of waiting
    /// (and a watch ends when the member loses its leader).
    needs_leader: bool,
}

const fn led(path: &'static str) -> Method {
    Method { path, needs_leader: true }
}

const fn local(path: &'static str) -> Method {
    Method { path, needs_leader: false }
}

pub(crate) const RANGE: Method = led("/etcdserverpb.KV/Range");
pub(crate) const TXN: Method = led("/etcdserverpb.KV/Txn");
pub(crate) const COMPACT: Method = led("/etcdserverpb.KV/Compact");
pub(crate) const WATCH: Method = led("/etcdserverpb.Watch/Watch");
pub(crate) const GRANT: Method = led("/etcdserverpb.Lease/LeaseGrant");
pub(crate) const REVOKE: Method = led("/etcdserverpb.Lease/LeaseRevoke");
pub(crate) const KEEP_ALIVE: Method = led("/etcdserverpb.Lease/LeaseKeepAlive");
pub(crate) const MEMBER_ADD: Method = led("/etcdserverpb.Cluster/MemberAdd");
pub(crate) const MEMBER_REMOVE: Method = led("/etcdserverpb.Cluster/MemberRemove");
pub(crate) const MEMBER_PROMOTE: Method = led("/etcdserverpb.Cluster/MemberPromote");
pub(crate) const MEMBER_LIST: Method = local("/etcdserverpb.Cluster/MemberList");
pub(crate) const STATUS: Method = local("/etcdserverpb.Maintenance/Status");
pub(crate) const ALARM: Method = local("/etcdserverpb.Maintenance/Alarm");
pub(crate) const DEFRAGMENT: Method = local("/etcdserverpb.Maintenance/Defragment");
pub(crate) const MOVE_LEADER: Method = local("/etcdserverpb.Maintenance/MoveLeader");
pub(crate) const SNAPSHOT: Method = local("/etcdserverpb.Maintenance/Snapshot");

/// Asks once. The member drops the request after `limit`, too.
pub(crate) async fn unary<Q, A>(
    channel: Channel,
    method: Method,
    request: Q,
    limit: Duration,
) -> Result<A, Status>
where
    Q: Message + 'static,
    A: Message + Default + 'static,
{
    let ask = async {
        let mut grpc = ready(channel).await?;
        let mut request = Request::new(request);
        request.set_timeout(limit);
        mark(&mut request, method);
        let codec = ProstCodec::<Q, A>::default();
        let path = PathAndQuery::from_static(method.path);
        Ok(grpc.unary(request, path, codec).await?.into_inner())
    };
    within(limit, ask).await
}

/// A stream of answers to one request. The side of requests stays open: etcd ends
/// a watch with it. `limit` is until the stream begins.
pub(crate) async fn streaming<Q, A>(
    channel: Channel,
    method: Method,
    request: Q,
    limit: Duration,
) -> Result<Streaming<A>, Status>
where
    Q: Message + 'static,
    A: Message + Default + 'static,
{
    let requests = stream::once(async { request }).chain(stream::pending());
    open(channel, method, requests, limit).await
}

/// As [`streaming`], for methods that take one request only.
pub(crate) async fn server_streaming<Q, A>(
    channel: Channel,
    method: Method,
    request: Q,
    limit: Duration,
) -> Result<Streaming<A>, Status>
where
    Q: Message + 'static,
    A: Message + Default + 'static,
{
    open(channel, method, stream::once(async { request }), limit).await
}

async fn open<Q, A>(
    channel: Channel,
    method: Method,
    requests: impl Stream<Item = Q> + Send + 'static,
    limit: Duration,
) -> Result<Streaming<A>, Status>
where
    Q: Message + 'static,
    A: Message + Default + 'static,
{
    let ask = async {
        let mut grpc = ready(channel).await?;
        let mut request = Request::new(requests);
        mark(&mut request, method);
        let codec = ProstCodec::<Q, A>::default();
        let path = PathAndQuery::from_static(method.path);
        Ok(grpc.streaming(request, path, codec).await?.into_inner())
    };
    within(limit, ask).await
}

async fn ready(channel: Channel) -> Result<Grpc<Channel>, Status> {
    let mut grpc = Grpc::new(channel).max_decoding_message_size(usize::MAX);
    grpc.ready().await.map_err(|e| Status::from_error(Box::new(e)))?;
    Ok(grpc)
}

fn mark<T>(request: &mut Request<T>, method: Method) {
    if method.needs_leader {
        request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
    }
}

async fn within<T>(
    limit: Duration,
    ask: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    tokio::time::timeout(limit, ask)
        .await
        .unwrap_or_else(|_| Err(Status::deadline_exceeded(format!("no answer within {limit:?}"))))
}
