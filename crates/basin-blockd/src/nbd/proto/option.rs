//! Pure. What is agreed before the first request: TLS, which export, which extras.

use super::{IHAVEOPT, Malformed, Take, malformed};

/// More data than this no option has.
pub const MAX_OPTION: u32 = 16 << 10;
/// A client that asks for more contexts is not interested in the answer.
const MAX_QUERIES: u32 = 64;
const MAX_NAME: usize = 4096;
/// Bytes before an option's data, and before a reply's.
pub const OPTION_HEADER: usize = 16;
pub const REPLY_HEADER: usize = 20;

const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// Kinds of options.
pub mod kind {
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Kinds of replies; those with the highest bit are refusals.
pub mod answer {
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    pub const ERROR: u32 = 1 << 31;
    pub const UNSUPPORTED: u32 = ERROR | 1;
    pub const INVALID: u32 = ERROR | 3;
    pub const TLS_REQUIRED: u32 = ERROR | 5;
    pub const UNKNOWN: u32 = ERROR | 6;
}

/// Kinds of information about an export.
pub mod info {
    pub const EXPORT: u16 = 0;
    pub const BLOCK_SIZE: u16 = 3;
}

/// An option as the client sent it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    ExportName(String),
    Abort,
    List,
    StartTls,
    /// And whether to begin with it.
    Info {
        name: String,
        go: bool,
    },
    StructuredReply,
    /// And whether to use them, rather than only to know.
    MetaContext {
        name: String,
        queries: Vec<String>,
        set: bool,
    },
    Unknown,
}

/// Why an option was not understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bad {
    /// Its data contradict each other; the client gets this as an answer.
    Invalid(Malformed),
    /// There is no way to go on.
    Fatal(Malformed),
}

/// The kind and length of an option.
pub fn header(bytes: [u8; OPTION_HEADER]) -> Result<(u32, u32), Malformed> {
    let mut take = Take(&bytes);
    if take.u64()? != IHAVEOPT {
        return malformed("an option without its magic number");
    }
    let (kind, len) = (take.u32()?, take.u32()?);
    if len > MAX_OPTION {
        return malformed(format!("an option of {len} bytes"));
    }
    Ok((kind, len))
}

/// What an option asks.
pub fn parse(kind: u32, data: &[u8]) -> Result<Ask, Bad> {
    let name = |bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok(name) if bytes.len() <= MAX_NAME => Ok(name.to_owned()),
        _ => malformed("a bad name of an export"),
    };
    let empty = |ask| if data.is_empty() { Ok(ask) } else { malformed("data that do not belong") };
    match kind {
        // The one option that has no place for a refusal.
        kind::EXPORT_NAME => name(data).map(Ask::ExportName).map_err(Bad::Fatal),
        kind::ABORT => Ok(Ask::Abort),
        kind::LIST => empty(Ask::List).map_err(Bad::Invalid),
        kind::STARTTLS => empty(Ask::StartTls).map_err(Bad::Invalid),
        kind::STRUCTURED_REPLY => empty(Ask::StructuredReply).map_err(Bad::Invalid),
        kind::INFO | kind::GO => parse_info(data, kind == kind::GO).map_err(Bad::Invalid),
        kind::LIST_META_CONTEXT | kind::SET_META_CONTEXT => {
            parse_contexts(data, kind == kind::SET_META_CONTEXT).map_err(Bad::Invalid)
        }
        _ => Ok(Ask::Unknown),
    }
}

fn parse_info(data: &[u8], go: bool) -> Result<Ask, Malformed> {
    let mut take = Take(data);
    let name = take.text()?.to_owned();
    let count = take.u16()?;
    take.bytes(2 * usize::from(count))?;
    take.end()?;
    if name.len() > MAX_NAME {
        return malformed("a bad name of an export");
    }
    Ok(Ask::Info { name, go })
}

fn parse_contexts(data: &[u8], set: bool) -> Result<Ask, Malformed> {
    let mut take = Take(data);
    let name = take.text()?.to_owned();
    let count = take.u32()?;
    if count > MAX_QUERIES || name.len() > MAX_NAME {
        return malformed("too many or too long");
    }
    let queries: Result<Vec<String>, Malformed> =
        (0..count).map(|_| take.text().map(str::to_owned)).collect();
    let queries = queries?;
    take.end()?;
    Ok(Ask::MetaContext { name, queries, set })
}

/// A reply to an option of that kind.
pub fn reply(kind: u32, answer: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(REPLY_HEADER + data.len());
    bytes.extend(REPLY_MAGIC.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(answer.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

/// The data of a reply that lists an export.
pub fn server_data(name: &str) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data
}

/// The data of a reply about a context.
pub fn context_data(id: u32, name: &str) -> Vec<u8> {
    let mut data = id.to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data
}

pub fn export_info(size: u64, flags: u16) -> Vec<u8> {
    let mut data = info::EXPORT.to_be_bytes().to_vec();
    data.extend(size.to_be_bytes());
    data.extend(flags.to_be_bytes());
    data
}

pub fn block_size_info() -> Vec<u8> {
    let mut data = info::BLOCK_SIZE.to_be_bytes().to_vec();
    for n in [super::MIN_BLOCK, super::PREFERRED_BLOCK, super::MAX_PAYLOAD] {
        data.extend(n.to_be_bytes());
    }
    data
}

/// The client's side: an option with its data.
pub fn ask(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = IHAVEOPT.to_be_bytes().to_vec();
    bytes.extend(kind.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

/// The data of `GO` for an export whose block sizes are of interest.
pub fn go_data(name: &str) -> Vec<u8> {
    let mut data = server_data(name);
    data.extend(1u16.to_be_bytes());
    data.extend(info::BLOCK_SIZE.to_be_bytes());
    data
}

/// The data of `SET_META_CONTEXT`.
pub fn contexts_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = server_data(name);
    data.extend((queries.len() as u32).to_be_bytes());
    queries.iter().for_each(|q| data.extend(server_data(q)));
    data
}

/// A reply as the client sees it: its kind and the length of its data.
pub fn reply_header(bytes: [u8; REPLY_HEADER], asked: u32) -> Result<(u32, u32), Malformed> {
    let mut take = Take(&bytes);
    if take.u64()? != REPLY_MAGIC || take.u32()? != asked {
        return malformed("the server answers what was not asked");
    }
    let (answer, len) = (take.u32()?, take.u32()?);
    if len > MAX_OPTION {
        return malformed(format!("a reply of {len} bytes"));
    }
    Ok((answer, len))
}

/// Size and flags, if the data of an `INFO` reply are about that.
pub fn parse_export_info(data: &[u8]) -> Result<Option<(u64, u16)>, Malformed> {
    let mut take = Take(data);
    if take.u16()? != info::EXPORT {
        return Ok(None);
    }
    let found = (take.u64()?, take.u16()?);
    take.end()?;
    Ok(Some(found))
}

/// The id and name of a context.
pub fn parse_context(data: &[u8]) -> Result<(u32, &str), Malformed> {
    let mut take = Take(data);
    let id = take.u32()?;
    match std::str::from_utf8(take.0) {
        Ok(name) => Ok((id, name)),
        Err(_) => malformed("a name is not UTF-8"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(bytes: &[u8], expect: Ask) {
        let head = bytes[..OPTION_HEADER].try_into().unwrap();
        let (kind, len) = header(head).unwrap();
        assert_eq!(len as usize, bytes.len() - OPTION_HEADER);
        assert_eq!(parse(kind, &bytes[OPTION_HEADER..]), Ok(expect));
    }

    #[test]
    fn what_the_client_asks_the_server_understands() {
        check(&ask(kind::STARTTLS, &[]), Ask::StartTls);
        check(&ask(kind::LIST, &[]), Ask::List);
        check(&ask(kind::EXPORT_NAME, b"a"), Ask::ExportName("a".into()));
        check(&ask(kind::GO, &go_data("disk")), Ask::Info { name: "disk".into(), go: true });
        check(
            &ask(kind::SET_META_CONTEXT, &contexts_data("d", &["base:allocation", "x"])),
            Ask::MetaContext {
                name: "d".into(),
                queries: vec!["base:allocation".into(), "x".into()],
                set: true,
            },
        );
        check(&ask(99, b"anything"), Ask::Unknown);
    }

    #[test]
    fn what_the_server_answers_the_client_understands() {
        let bytes = reply(kind::GO, answer::INFO, &export_info(1 << 40, 7));
        let head = bytes[..REPLY_HEADER].try_into().unwrap();
        assert_eq!(reply_header(head, kind::GO), Ok((answer::INFO, 12)));
        assert!(reply_header(head, kind::LIST).is_err());
        assert_eq!(parse_export_info(&bytes[REPLY_HEADER..]), Ok(Some((1 << 40, 7))));
        assert_eq!(parse_export_info(&block_size_info()), Ok(None));
        assert_eq!(parse_context(&context_data(5, "n")), Ok((5, "n")));
    }

    #[test]
    fn lengths_are_bounded() {
        let mut bytes: [u8; OPTION_HEADER] = ask(kind::GO, &[]).try_into().unwrap();
        bytes[12..].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(header(bytes).is_err());
        let mut data = server_data("x");
        data.extend(u32::MAX.to_be_bytes());
        assert!(matches!(parse(kind::SET_META_CONTEXT, &data), Err(Bad::Invalid(_))));
        assert!(matches!(parse(kind::GO, &u32::MAX.to_be_bytes()), Err(Bad::Invalid(_))));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(kind in 0u32..12, data in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(kind, &data);
            let _ = parse_export_info(&data);
            let _ = parse_context(&data);
            if let Ok(head) = data.get(..OPTION_HEADER).unwrap_or(&[]).try_into() {
                let _ = header(head);
            }
            if let Ok(head) = data.get(..REPLY_HEADER).unwrap_or(&[]).try_into() {
                let _ = reply_header(head, kind);
            }
        }
    }
}
