//! Pure. Server-sent events: from bytes, cut anywhere, to messages.

/// One message of the stream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Message {
    pub event: String,
    pub data: String,
    pub id: Option<String>,
}

/// Collects bytes until they are messages.
#[derive(Debug, Default)]
pub(super) struct Parser {
    line: Vec<u8>,
    after_cr: bool,
    message: Message,
    has_data: bool,
}

impl Parser {
    /// Takes the next bytes; returns the messages that they complete.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Message> {
        let mut done = Vec::new();
        for &byte in bytes {
            let after_cr = std::mem::replace(&mut self.after_cr, byte == b'\r');
            match byte {
                b'\n' if after_cr => {}
                b'\n' | b'\r' => {
                    let line = std::mem::take(&mut self.line);
                    done.extend(self.end_line(&String::from_utf8_lossy(&line)));
                }
                _ => self.line.push(byte),
            }
        }
        done
    }

    fn end_line(&mut self, line: &str) -> Option<Message> {
        if line.is_empty() {
            let message = std::mem::take(&mut self.message);
            return std::mem::take(&mut self.has_data).then_some(message);
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => self.message.event = value.to_owned(),
            "id" => self.message.id = Some(value.to_owned()),
            "data" => {
                if self.has_data {
                    self.message.data.push('\n');
                }
                self.message.data.push_str(value);
                self.has_data = true;
            }
            // A comment has an empty field; others are for browsers.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(stream: &str, expect: &[(&str, &str, Option<&str>)]) {
        let expect: Vec<Message> = expect
            .iter()
            .map(|(event, data, id)| Message {
                event: (*event).to_owned(),
                data: (*data).to_owned(),
                id: id.map(str::to_owned),
            })
            .collect();
        assert_eq!(Parser::default().feed(stream.as_bytes()), expect, "{stream:?} at once");
        // However the network cuts it.
        for size in 1..stream.len() {
            let mut parser = Parser::default();
            let messages: Vec<_> =
                stream.as_bytes().chunks(size).flat_map(|c| parser.feed(c)).collect();
            assert_eq!(messages, expect, "{stream:?} in pieces of {size}");
        }
    }

    #[test]
    fn messages() {
        check("event: vm\nid: 7\ndata: {}\n\n", &[("vm", "{}", Some("7"))]);
        check("data:a\n\ndata: b\n\n", &[("", "a", None), ("", "b", None)]);
        check("data: a\r\ndata: b\r\n\r\n", &[("", "a\nb", None)]);
        check("data: a\rid: 1\r\r", &[("", "a", Some("1"))]);
        check("data: {\"a\":\"b: c\"}\n\n", &[("", "{\"a\":\"b: c\"}", None)]);
        check("data: größer\n\n", &[("", "größer", None)]);
    }

    #[test]
    fn what_is_no_message() {
        check(": heartbeat\n\n:\n\n", &[]);
        check("retry: 3000\n\n", &[]);
        check("event: vm\n\ndata: x\n\n", &[("", "x", None)]);
        check("data: cut off in the mid", &[]);
    }
}
