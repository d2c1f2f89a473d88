//! The certificates of a vendor, valid and invalid.
//!
//! Every set has its own certificate authority, which no client trusts by default.

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd,
};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A server's certificate, and the authority to trust.
#[derive(Clone, Debug)]
pub struct Certificates {
    /// The certificate of the authority.
    pub(super) ca_pem: String,
    /// The server's certificate chain, and its key.
    pub(super) server: Arc<ServerConfig>,
}

impl Certificates {
    /// Returns valid certificates for an address and `localhost`.
    pub fn good(address: IpAddr) -> Result<Self> {
        Self::signed(&params(&[&address.to_string(), "localhost"])?)
    }

    /// Returns expired certificates.
    pub fn expired(address: IpAddr) -> Result<Self> {
        let mut params = params(&[&address.to_string()])?;
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
        Self::signed(&params)
    }

    /// Returns certificates for a name, without an address.
    pub fn of(name: &str) -> Result<Self> {
        Self::signed(&params(&[name])?)
    }

    /// Returns a self-signed certificate, which the trusted authority has not signed.
    pub fn self_signed(address: IpAddr) -> Result<Self> {
        let other = Self::good(address)?;
        let key = KeyPair::generate()?;
        let mut params = params(&[&address.to_string()])?;
        // Another issuer name; otherwise the client would look for the signature of the trusted authority.
        params
            .distinguished_name
            .push(DnType::CommonName, "self-signed");
        let certificate = params.self_signed(&key)?;
        Ok(Self {
            ca_pem: other.ca_pem,
            server: server(certificate.der().clone(), &key)?,
        })
    }

    /// Restricts the server to HTTP/2.
    pub(super) fn for_http2(mut self) -> Self {
        Arc::make_mut(&mut self.server).alpn_protocols = vec![b"h2".to_vec()];
        self
    }

    /// Returns a chain without the intermediate certificate that signed the server's.
    pub fn without_intermediate(address: IpAddr) -> Result<Self> {
        let root = authority("the root")?;
        let mut intermediate = CertificateParams::new(Vec::new())?;
        intermediate.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let name = "the one between";
        intermediate
            .distinguished_name
            .push(DnType::CommonName, name);
        let intermediate = CertifiedIssuer::signed_by(intermediate, KeyPair::generate()?, &root)?;
        let key = KeyPair::generate()?;
        let certificate = params(&[&address.to_string()])?.signed_by(&key, &intermediate)?;
        Ok(Self {
            ca_pem: root.pem(),
            server: server(certificate.der().clone(), &key)?,
        })
    }

    /// Returns certificates of a server that uses the certificate of the authority itself as its own.
    pub fn authority_as_server(address: IpAddr) -> Result<Self> {
        let mut params = params(&[&address.to_string()])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        Ok(Self {
            ca_pem: certificate.pem(),
            server: server(certificate.der().clone(), &key)?,
        })
    }

    fn signed(params: &CertificateParams) -> Result<Self> {
        let mut ca = CertificateParams::new(Vec::new())?;
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &ca)?;
        Ok(Self {
            ca_pem: ca.pem(),
            server: server(certificate.der().clone(), &key)?,
        })
    }
}

fn authority(name: &str) -> Result<CertifiedIssuer<'static, KeyPair>> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?)
}

fn params(names: &[&str]) -> Result<CertificateParams> {
    let names = names.iter().map(|&name| name.to_owned());
    Ok(CertificateParams::new(names.collect::<Vec<_>>())?)
}

fn server(certificate: CertificateDer<'static>, key: &KeyPair) -> Result<Arc<ServerConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)?;
    Ok(Arc::new(server))
}
