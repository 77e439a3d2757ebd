//! A TLS handshake, and whether the certificate is one for this backend, today.
//!
//! Owns what is judged: the dates always; the name if one is configured; the chain if issuers are. Without issuers
//! anybody could answer with a certificate of his own: the probe then says that TLS works, not who is there. Sessions
//! are never resumed, since a resumed one shows no certificate. Ends by `close_notify` and FIN.

use super::validity::Validity;
use super::{ProbeError, shortage};
use crate::config;
use crate::net::async_stream::AsyncStream;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::io::AsyncWriteExt;
use tokio_rustls::TlsConnector;

/// The most that is read of a backend, in bytes: certificates of a chain, and tickets.
pub const MAX_HANDSHAKE: usize = 256 << 10;

/// Made once for a pool.
#[derive(Clone, Debug)]
pub struct Handshake {
    client: Arc<ClientConfig>,
    name: Option<ServerName<'static>>,
}

impl Handshake {
    pub fn new(spec: &config::Tls) -> Self {
        let provider = Arc::new(ring::default_provider());
        let verifier = Verifier {
            name: spec.name.clone(),
            trusted: spec.ca.as_ref().map(Trusted::new),
            provider: Arc::clone(&provider),
        };
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(rustls::ALL_VERSIONS)
            .expect("the provider has ciphers for every version")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        client.resumption = Resumption::disabled();
        Self { client: Arc::new(client), name: spec.name.clone() }
    }

    /// The second of Unix time until which the backend's certificate is good.
    pub async fn make(&self, stream: &mut AsyncStream) -> Result<u64, ProbeError> {
        // An address is never sent, and the verifier knows itself which name it wants.
        let name = self.name.clone().unwrap_or(ServerName::from(Ipv4Addr::UNSPECIFIED));
        let connecting = TlsConnector::from(Arc::clone(&self.client)).connect(name, stream);
        let failed = |error| shortage(&error).unwrap_or_else(|| ProbeError::Wrong(self.in_words(&error)));
        let mut tls = connecting.await.map_err(failed)?;
        let certificates = tls.get_ref().1.peer_certificates();
        let validity = certificates.and_then(|all| Validity::of(all.first()?));
        // A backend that has hung up by now has answered all the same.
        let _ = tls.shutdown().await;
        validity.map(|validity| validity.until).ok_or(ProbeError::Wrong(UNREADABLE.into()))
    }

    fn in_words(&self, error: &std::io::Error) -> String {
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
        let Some(tls) = tls else { return format!("the TLS handshake failed: {error}") };
        match tls {
            Error::InvalidCertificate(CertificateError::NotValidForNameContext { presented, .. }) => {
                let names: Vec<_> = presented.iter().take(MAX_NAMES).map(|name| inner_name(name)).collect();
                let more = if presented.len() > MAX_NAMES { ", …" } else { "" };
                let wanted = self.name.as_ref().map_or_else(String::new, |name| name.to_str().into_owned());
                match names.len() {
                    0 => format!("certificate is for no name, wanted \"{wanted}\""),
                    _ => format!("certificate is for {}{more}, not \"{wanted}\"", names.join(", ")),
                }
            }
            Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. }) => {
                format!("certificate ended at {}", date(not_after.as_secs()))
            }
            Error::InvalidCertificate(CertificateError::NotValidYetContext { not_before, .. }) => {
                format!("certificate begins at {}", date(not_before.as_secs()))
            }
            Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
                "certificate is from none of the issuers in ca".into()
            }
            Error::InvalidCertificate(CertificateError::BadEncoding) => UNREADABLE.into(),
            // Its own words say nothing but what kind of error that is.
            Error::InvalidCertificate(CertificateError::Other(inner)) => format!("certificate is not good: {inner}"),
            Error::InvalidCertificate(other) => format!("certificate is not good: {other}"),
            other => format!("the TLS handshake failed: {other}"),
        }
    }
}

const UNREADABLE: &str = "certificate can't be understood";
/// The most names of a certificate that a reason repeats.
const MAX_NAMES: usize = 3;

/// `2026-03-01T09:30:12Z`.
pub fn date(unix: u64) -> String {
    // Within what RFC 3339 can write, which is the year 9999.
    const LAST: u64 = 253_402_300_799;
    humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + Duration::from_secs(unix.min(LAST))).to_string()
}

/// The name in `DnsName("a.example")`, in quotes, as rustls lists it.
fn inner_name(presented: &str) -> String {
    let inside = presented.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')')).unwrap_or(presented);
    super::quoted(inside.trim_matches('"').as_bytes())
}

/// Whom we believe.
#[derive(Debug)]
struct Trusted {
    issuers: RootCertStore,
    /// The same certificates: a backend that shows one of them needs no issuer.
    themselves: Vec<CertificateDer<'static>>,
}

impl Trusted {
    fn new(ca: &config::Ca) -> Self {
        let mut issuers = RootCertStore::empty();
        issuers.add_parsable_certificates(ca.certificates.iter().cloned());
        Self { issuers, themselves: ca.certificates.clone() }
    }
}

#[derive(Debug)]
struct Verifier {
    name: Option<ServerName<'static>>,
    trusted: Option<Trusted>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        if let Some(name) = &self.name {
            verify_server_name(&certificate, name)?;
        }
        let validity = Validity::of(end_entity).ok_or(CertificateError::BadEncoding)?;
        let time = |secs| UnixTime::since_unix_epoch(Duration::from_secs(secs));
        if now.as_secs() > validity.until {
            return Err(CertificateError::ExpiredContext { time: now, not_after: time(validity.until) }.into());
        }
        if now.as_secs() < validity.from {
            return Err(CertificateError::NotValidYetContext { time: now, not_before: time(validity.from) }.into());
        }
        if let Some(Trusted { issuers, themselves }) = &self.trusted
            && !themselves.contains(end_entity)
        {
            let algorithms = self.provider.signature_verification_algorithms.all;
            let chain =
                verify_server_cert_signed_by_trust_anchor(&certificate, issuers, intermediates, now, algorithms);
            // Another issuer of the same name is another issuer.
            let forged = Error::from(CertificateError::BadSignature);
            chain.map_err(|error| if error == forged { CertificateError::UnknownIssuer.into() } else { error })?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::super::kit::{Conn, Peer, ask, ends_in_order, given_up};
    use super::super::{Answer, Question};
    use super::*;
    use config::{Ca, Tls};
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
    use rustls::pki_types::PrivateKeyDer;
    use rustls::{ServerConfig, ServerConnection, Stream};
    use std::io::Read;

    const LIMIT: Duration = Duration::from_secs(10);
    const FAR: u64 = 4_102_444_800;

    /// A certificate chain and its key.
    struct Identity {
        chain: Vec<CertificateDer<'static>>,
        key: KeyPair,
    }

    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_before = date_time_ymd(2_020, 1, 1);
        params.not_after = date_time_ymd(2_100, 1, 1);
        params
    }

    fn self_signed(params: &CertificateParams) -> Identity {
        let key = KeyPair::generate().unwrap();
        Identity { chain: vec![params.self_signed(&key).unwrap().der().clone()], key }
    }

    /// An issuer's certificate, and one that it issued.
    fn issued(name: &str) -> (Ca, Identity) {
        let (mut issuer, issuers_key) = (params("issuer.example"), KeyPair::generate().unwrap());
        issuer.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = issuer.self_signed(&issuers_key).unwrap().der().clone();
        let key = KeyPair::generate().unwrap();
        let issuer = Issuer::from_params(&issuer, &issuers_key);
        let leaf = params(name).signed_by(&key, &issuer).unwrap().der().clone();
        (ca(vec![root]), Identity { chain: vec![leaf], key })
    }

    fn ca(certificates: Vec<CertificateDer<'static>>) -> Ca {
        Ca { path: "/ca.pem".into(), certificates }
    }

    /// Serves one handshake, and tells whether the other side ended it in order, without a reset.
    fn serving(identity: &Identity) -> Peer {
        let key = PrivateKeyDer::try_from(identity.key.serialize_der()).unwrap();
        let provider = Arc::new(ring::default_provider());
        let server =
            ServerConfig::builder_with_provider(provider).with_protocol_versions(rustls::ALL_VERSIONS).unwrap();
        let server = server.with_no_client_auth().with_single_cert(identity.chain.clone(), key).unwrap();
        Peer::new(move |mut conn| {
            let mut tls = ServerConnection::new(Arc::new(server)).unwrap();
            // Without close_notify before the FIN, this fails.
            let closed = Stream::new(&mut tls, &mut conn.0).read_to_end(&mut Vec::new());
            closed.is_ok() && ends_in_order(conn)
        })
    }

    fn question(name: Option<&str>, ca: Option<Ca>) -> Question {
        let name = name.map(|name| ServerName::try_from(name.to_owned()).unwrap());
        Question::Tls(Arc::new(Handshake::new(&Tls { name, ca, ..Tls::default() })))
    }

    async fn reason(question: Question, identity: &Identity) -> String {
        let peer = serving(identity);
        let error = ask(&question, &peer, LIMIT).await.unwrap_err();
        peer.outcome();
        error.to_string()
    }

    #[tokio::test]
    async fn a_good_certificate_is_good_until_its_end_and_the_connection_ends_in_order() {
        let own = self_signed(&params("a.example"));
        let (issuer, other) = issued("*.b.example");
        for (identity, question) in [
            (&own, question(None, None)),
            (&own, question(Some("a.example"), None)),
            // The backend's own certificate may stand in the file.
            (&own, question(Some("a.example"), Some(ca(own.chain.clone())))),
            (&other, question(Some("www.b.example"), Some(issuer.clone()))),
            (&other, question(None, Some(issuer.clone()))),
        ] {
            let peer = serving(identity);
            assert_eq!(ask(&question, &peer, LIMIT).await, Ok(Answer::GoodUntil(FAR)));
            assert!(peer.outcome(), "no close_notify, or a reset");
        }
    }

    #[tokio::test]
    async fn a_wrong_name_date_or_issuer_is_told_in_words() {
        let own = self_signed(&params("a.example"));
        let (issuer, other) = issued("c.example");
        let name = reason(question(Some("b.example"), None), &own).await;
        assert_eq!(name, r#"certificate is for "a.example", not "b.example""#);
        let issuer_of_others = reason(question(None, Some(issuer)), &own).await;
        assert_eq!(issuer_of_others, "certificate is from none of the issuers in ca");
        let pinned = reason(question(None, Some(ca(own.chain.clone()))), &other).await;
        assert_eq!(pinned, "certificate is from none of the issuers in ca");

        let mut old = params("a.example");
        old.not_after = date_time_ymd(2_021, 2, 3);
        let old = self_signed(&old);
        for ca in [None, Some(ca(old.chain.clone()))] {
            assert_eq!(reason(question(None, ca), &old).await, "certificate ended at 2021-02-03T00:00:00Z");
        }
        let mut early = params("a.example");
        early.not_before = date_time_ymd(2_099, 1, 1);
        let early = reason(question(None, None), &self_signed(&early)).await;
        assert_eq!(early, "certificate begins at 2099-01-01T00:00:00Z");
    }

    #[tokio::test]
    async fn a_backend_is_told_that_its_certificate_is_refused() {
        let own = self_signed(&params("a.example"));
        let key = PrivateKeyDer::try_from(own.key.serialize_der()).unwrap();
        for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
            let server = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
            let server = server.with_protocol_versions(&[version]).unwrap().with_no_client_auth();
            let server = Arc::new(server.with_single_cert(own.chain.clone(), key.clone_key()).unwrap());
            let peer = Peer::new(move |mut conn| {
                let mut tls = ServerConnection::new(server).unwrap();
                let error = Stream::new(&mut tls, &mut conn.0).read_to_end(&mut Vec::new()).unwrap_err();
                error.to_string().contains("alert")
            });
            ask(&question(Some("b.example"), None), &peer, LIMIT).await.unwrap_err();
            assert!(peer.outcome(), "no alert came by {version:?}");
        }
    }

    #[tokio::test]
    async fn what_speaks_no_tls_is_told_so() {
        let peer = Peer::new(|mut conn: Conn| {
            conn.send(b"HTTP/1.1 400 Bad Request\r\n\r\n");
            ends_in_order(conn)
        });
        let error = ask(&question(None, None), &peer, LIMIT).await.unwrap_err();
        assert!(error.to_string().starts_with("the TLS handshake failed: "), "{error}");
        peer.outcome();
        let peer = Peer::new(ends_in_order);
        let error = ask(&question(None, None), &peer, LIMIT).await.unwrap_err();
        assert!(error.to_string().starts_with("the TLS handshake failed: "), "{error}");
        peer.outcome();
    }

    #[tokio::test]
    async fn a_gigabyte_or_silence_is_no_handshake() {
        // The begin of a record, over and over: handshake messages that never end.
        for pattern in [&b"garbage "[..], b"\x16\x03\x03\x00\x04\x02\xff\xff\xff"] {
            let peer = Peer::new(|mut conn| conn.flood(pattern) < 64 << 20);
            let error = ask(&question(None, None), &peer, LIMIT).await.unwrap_err();
            assert!(error.to_string().starts_with("the TLS handshake failed: "), "{error}");
            assert!(peer.outcome(), "more than the socket buffers hold was taken");
        }
        let limit = Duration::from_millis(200);
        let silence = given_up(&question(None, None), limit, Peer::until_the_end).await;
        assert_eq!(silence, ProbeError::TimedOut(limit));
    }
}
