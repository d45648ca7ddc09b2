//! A client of the API, over the server's unix socket or over HTTPS.
