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

/// A server's certificate, and whom to trust for it.
#[derive(Clone, Debug)]
pub struct Certificates {
    /// The authority to trust.
    pub(super) ca_pem: String,
    /// The server's certificate chain, and its key.
    pub(super) server: Arc<ServerConfig>,
}

impl Certificates {
    /// For an address and `localhost`, good for centuries.
    pub fn good(address: IpAddr) -> Result<Self> {
        Self::signed(&params(&[&address.to_string(), "localhost"])?)
    }

    /// The same, of a year that is over.
    pub fn expired(address: IpAddr) -> Result<Self> {
        let mut params = params(&[&address.to_string()])?;
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
        Self::signed(&params)
    }

    /// For a name, and no address.
    pub fn of(name: &str) -> Result<Self> {
        Self::signed(&params(&[name])?)
    }

    /// Self-signed, while the trusted authority is another one.
    pub fn self_signed(address: IpAddr) -> Result<Self> {
        let stranger = Self::good(address)?;
        let key = KeyPair::generate()?;
        let mut params = params(&[&address.to_string()])?;
        // A name of its own: by its usual one, the stranger might have signed it.
        params
            .distinguished_name
            .push(DnType::CommonName, "nobody but itself");
        let certificate = params.self_signed(&key)?;
        Ok(Self {
            ca_pem: stranger.ca_pem,
            server: server(certificate.der().clone(), &key)?,
        })
    }

    /// The same for a server that speaks HTTP/2 alone.
    pub(super) fn for_http2(mut self) -> Self {
        Arc::make_mut(&mut self.server).alpn_protocols = vec![b"h2".to_vec()];
        self
    }

    /// Signed by an authority that the client does not see: one between the trusted one and the server.
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

    /// The authority's own certificate, shown as the server's.
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
