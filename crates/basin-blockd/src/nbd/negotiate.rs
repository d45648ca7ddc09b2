//! The server's side of what comes before the first request. Nothing is told to a
//! client that has not shown a certificate of the cluster.

use std::sync::Arc;

use basin_model::HostId;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::grants::{Granted, Grants};
use super::proto::option::{self, Ask, Bad, OPTION_HEADER, answer};
use super::proto::{
    FIXED_NEWSTYLE, IHAVEOPT, MIRROR_CONTEXT, Malformed, NBD_MAGIC, NO_ZEROES, allocation,
    export_flags,
};
use super::tls::{Identity, host_of};

/// A client that asks this much without beginning does not want to begin.
const MAX_OPTIONS: usize = 64;
/// Of the contexts.
pub const ALLOCATION_ID: u32 = 1;
const MIRROR_ID: u32 = 2;

/// What client and server agreed on.
pub struct Agreed {
    pub granted: Arc<Granted>,
    pub structured: bool,
    /// `base:allocation` may be asked for.
    pub allocation: bool,
    /// The client is a mirror, of this id.
    pub mirror: Option<String>,
}

fn text(e: impl std::fmt::Display) -> String {
    e.to_string()
}

/// Greets, and does nothing but TLS. `None`: the client has left.
pub async fn start_tls(
    mut stream: TcpStream,
    identity: &Identity,
) -> Result<Option<(TlsStream<TcpStream>, HostId)>, String> {
    let mut greeting = NBD_MAGIC.to_be_bytes().to_vec();
    greeting.extend(IHAVEOPT.to_be_bytes());
    greeting.extend((FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
    stream.write_all(&greeting).await.map_err(text)?;
    // Without the zeros there would be 124 of them after EXPORT_NAME, which a client
    // that is not of today would wait for: none of those knows TLS.
    let flags = stream.read_u32().await.map_err(text)?;
    if flags & u32::from(FIXED_NEWSTYLE) == 0 || flags & u32::from(NO_ZEROES) == 0 {
        return Err("a client of an old style".into());
    }
    for _ in 0..MAX_OPTIONS {
        let (kind, data) = read_option(&mut stream).await?;
        let (reply, message) = match option::parse(kind, &data) {
            Ok(Ask::StartTls) => {
                stream.write_all(&option::reply(kind, answer::ACK, &[])).await.map_err(text)?;
                let acceptor = TlsAcceptor::from(Arc::clone(&identity.server));
                let stream = acceptor.accept(stream).await.map_err(text)?;
                let certificates = stream.get_ref().1.peer_certificates();
                let host = certificates.and_then(|c| host_of(c.first()?));
                let host = host.ok_or("its certificate is not a server's")?;
                return Ok(Some((stream, host)));
            }
            Ok(Ask::Abort) => {
                let _ = stream.write_all(&option::reply(kind, answer::ACK, &[])).await;
                return Ok(None);
            }
            Ok(Ask::ExportName(_)) => return Err("wants an export without TLS".into()),
            Ok(Ask::Unknown) => (answer::UNSUPPORTED, ""),
            Ok(_) => (answer::TLS_REQUIRED, "TLS is required, with a certificate of the cluster"),
            Err(Bad::Invalid(_)) => (answer::INVALID, "the option's data are not valid"),
            Err(Bad::Fatal(why)) => return Err(text(why)),
        };
        let reply = option::reply(kind, reply, message.as_bytes());
        stream.write_all(&reply).await.map_err(text)?;
    }
    Err("never begins".into())
}

async fn read_option(stream: &mut (impl AsyncRead + Unpin)) -> Result<(u32, Vec<u8>), String> {
    let mut head = [0; OPTION_HEADER];
    stream.read_exact(&mut head).await.map_err(text)?;
    let (kind, len) = option::header(head).map_err(text)?;
    let mut data = vec![0; len as usize];
    stream.read_exact(&mut data).await.map_err(text)?;
    Ok((kind, data))
}

/// Up to the beginning of the requests; `None`: the client has left.
pub async fn negotiate(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    host: HostId,
    grants: &Grants,
) -> Result<Option<Agreed>, String> {
    let mut state = Negotiation { host, grants, structured: false, contexts: None };
    for _ in 0..MAX_OPTIONS {
        let (kind, data) = read_option(stream).await?;
        let mut out = Vec::new();
        let next = state.answer(kind, option::parse(kind, &data), &mut out).map_err(text)?;
        stream.write_all(&out).await.map_err(text)?;
        stream.flush().await.map_err(text)?;
        match next {
            Next::Option => {}
            Next::Leave => return Ok(None),
            Next::Begin(agreed) => return Ok(Some(agreed)),
        }
    }
    Err("never begins".into())
}

enum Next {
    Option,
    Leave,
    Begin(Agreed),
}

struct Negotiation<'a> {
    host: HostId,
    grants: &'a Grants,
    structured: bool,
    /// Which of them, and of which export.
    contexts: Option<(String, bool, Option<String>)>,
}

impl Negotiation<'_> {
    fn answer(
        &mut self,
        kind: u32,
        asked: Result<Ask, Bad>,
        out: &mut Vec<u8>,
    ) -> Result<Next, Malformed> {
        let mut say = |answer, data: &[u8]| out.extend(option::reply(kind, answer, data));
        match asked {
            Err(Bad::Fatal(why)) => return Err(why),
            Err(Bad::Invalid(why)) => say(answer::INVALID, why.0.as_bytes()),
            Ok(Ask::Unknown) => say(answer::UNSUPPORTED, b""),
            Ok(Ask::StartTls) => say(answer::INVALID, b"TLS is on already"),
            Ok(Ask::Abort) => {
                say(answer::ACK, b"");
                return Ok(Next::Leave);
            }
            Ok(Ask::StructuredReply) => {
                self.structured = true;
                say(answer::ACK, b"");
            }
            Ok(Ask::List) => {
                for name in self.grants.names(self.host) {
                    say(answer::SERVER, &option::server_data(&name));
                }
                say(answer::ACK, b"");
            }
            Ok(Ask::ExportName(name)) => {
                // There is no way to refuse but to go.
                let Some(granted) = self.grants.find(&name, self.host) else {
                    return super::proto::malformed("an export that is not granted");
                };
                out.extend(granted.block.size().to_be_bytes());
                out.extend(flags(&granted).to_be_bytes());
                return Ok(Next::Begin(self.agree(&name, granted)));
            }
            Ok(Ask::Info { name, go }) => match self.grants.find(&name, self.host) {
                None => say(answer::UNKNOWN, b"there is no such export for this server"),
                Some(granted) => {
                    let size = granted.block.size();
                    say(answer::INFO, &option::export_info(size, flags(&granted)));
                    say(answer::INFO, &option::block_size_info());
                    say(answer::ACK, b"");
                    if go {
                        return Ok(Next::Begin(self.agree(&name, granted)));
                    }
                }
            },
            Ok(Ask::MetaContext { name, queries, set }) => {
                if !self.structured {
                    say(answer::INVALID, b"contexts need structured replies");
                } else if self.grants.find(&name, self.host).is_none() {
                    say(answer::UNKNOWN, b"there is no such export for this server");
                } else {
                    let every = !set && queries.is_empty();
                    let has = |q: &String| q == allocation::NAME || (!set && q == "base:");
                    let allocation = every || queries.iter().any(has);
                    if allocation {
                        let data = option::context_data(ALLOCATION_ID, allocation::NAME);
                        say(answer::META_CONTEXT, &data);
                    }
                    let id = |q: &String| q.strip_prefix(MIRROR_CONTEXT).map(str::to_owned);
                    let mirror = queries.iter().find_map(id).filter(|id| set && id.len() <= 64);
                    if let Some(id) = &mirror {
                        let name = format!("{MIRROR_CONTEXT}{id}");
                        say(answer::META_CONTEXT, &option::context_data(MIRROR_ID, &name));
                    }
                    say(answer::ACK, b"");
                    if set {
                        self.contexts = Some((name, allocation, mirror));
                    }
                }
            }
        }
        Ok(Next::Option)
    }

    fn agree(&mut self, name: &str, granted: Arc<Granted>) -> Agreed {
        // Contexts of another export do not count.
        let (allocation, mirror) = match self.contexts.take() {
            Some((of, allocation, mirror)) if of == name => (allocation, mirror),
            _ => (false, None),
        };
        Agreed { granted, structured: self.structured, allocation, mirror }
    }
}

fn flags(granted: &Granted) -> u16 {
    use export_flags::{
        CAN_MULTI_CONN, HAS_FLAGS, READ_ONLY, SEND_DF, SEND_FLUSH, SEND_FUA, SEND_TRIM,
        SEND_WRITE_ZEROES,
    };
    let always = HAS_FLAGS | SEND_FLUSH | SEND_FUA | SEND_DF | CAN_MULTI_CONN;
    let more = match granted.grant.read_only {
        true => READ_ONLY,
        false => SEND_TRIM | SEND_WRITE_ZEROES,
    };
    always | more
}
