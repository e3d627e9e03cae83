"""The keys of Orthanc's configuration: what becomes of each here, with Orthanc's defaults.

From the configuration that Orthanc writes by itself (`Orthanc --config=FILE`), and from its releases up to
1.12.10. docs/reference/orthanc.md has the same table. A test compares both, and this one with an installed
Orthanc.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Key:
    """A key that is honoured.

    Attributes:
        default: Orthanc's; None where it has none.
        becomes: What it sets here.
    """

    default: bool | int | str | tuple[str, ...] | None
    becomes: str


HONOURED: Final = {
    "Name": Key("MyOrthanc", "`[node] name`"),
    "DicomAet": Key("ORTHANC", "`[node] ae_title`"),
    "StorageDirectory": Key("OrthancStorage", "`[node] data_dir`"),
    "DicomServerEnabled": Key(True, "a `[[listeners]]`, or none"),
    "DicomPort": Key(4242, "`[[listeners]] port`"),
    "DicomTlsEnabled": Key(False, "`[[listeners]] tls`"),
    "DicomTlsCertificate": Key(None, "`[tls.orthanc] certificate`"),
    "DicomTlsPrivateKey": Key(None, "`[tls.orthanc] private_key`"),
    "DicomTlsTrustedCertificates": Key(None, "`[tls.orthanc] trusted`"),
    "DicomTlsRemoteCertificateRequired": Key(True, "`[tls.orthanc] peer_certificate`"),
    "DicomTlsMinimumProtocolVersion": Key(0, "`[tls.orthanc] profile` or `minimum_version`"),
    "DicomTlsCiphersAccepted": Key((), "`[tls.orthanc] ciphers`"),
    "DicomCheckCalledAet": Key(False, "`[receive] check_called_ae`"),
    "StrictAetComparison": Key(False, "`[receive] ignore_ae_title_case`, the other way round"),
    "UnknownSopClassAccepted": Key(False, "`[receive] accept_unknown_sop_classes`"),
    "AcceptedSopClasses": Key((), "`[receive] sop_classes`"),
    "RejectedSopClasses": Key((), "`[receive] rejected_sop_classes`"),
    "AcceptedTransferSyntaxes": Key(("1.2.840.10008.1.*",), "`[receive] transfer_syntaxes`"),
    "DeflatedTransferSyntaxAccepted": Key(True, "`[receive] transfer_syntaxes`"),
    "JpegTransferSyntaxAccepted": Key(True, "`[receive] transfer_syntaxes`"),
    "Jpeg2000TransferSyntaxAccepted": Key(True, "`[receive] transfer_syntaxes`"),
    "JpegLosslessTransferSyntaxAccepted": Key(True, "`[receive] transfer_syntaxes`"),
    "JpipTransferSyntaxAccepted": Key(True, "`[receive] transfer_syntaxes`"),
    "Mpeg2TransferSyntaxAccepted": Key(True, "`[receive] transfer_syntaxes`"),
    "Mpeg4TransferSyntaxAccepted": Key(True, "`[receive] transfer_syntaxes`"),
    "RleTransferSyntaxAccepted": Key(True, "`[receive] transfer_syntaxes`"),
    "H265TransferSyntaxAccepted": Key(True, "`[receive] transfer_syntaxes`"),
    "MaximumPduLength": Key(16384, "`[receive] max_pdu_length`"),
    "DicomThreadsCount": Key(4, "`[receive] processes`"),
    "DicomScpTimeout": Key(30, "`[receive] idle_seconds`"),
    "SyncStorageArea": Key(True, "`[receive] durability`"),
    "OverwriteInstances": Key(False, "`[store] duplicates`"),
    "MaximumStorageSize": Key(0, "`[retention] max_bytes`"),
    "MaximumStorageMode": Key("Recycle", "`[retention] at_max_bytes`"),
    "StableAge": Key(60, "`[node] stable_seconds`"),
    "DicomAlwaysAllowEcho": Key(True, "`[[peers]] allow`"),
    "DicomAlwaysAllowStore": Key(True, "`[[peers]] allow`"),
    "DicomCheckModalityHost": Key(False, "`[[peers]] hosts`"),
    "DicomModalities": Key(None, "`[[destinations]]` and `[[peers]]`"),
    "DicomModalitiesInDatabase": Key(False, "no `[[destinations]]` if it is true"),
    "DicomScuTimeout": Key(10, "`[[destinations]] connect_seconds` and `response_seconds`"),
}

MODALITY_KEYS: Final = {
    "AET": Key(None, "`ae_title` of both"),
    "Host": Key(None, "`[[destinations]] host`, `[[peers]] hosts`"),
    "Port": Key(None, "`[[destinations]] port`"),
    "UseDicomTls": Key(False, "`[[destinations]] tls`"),
    "LocalAet": Key("", "`[[destinations]] calling_ae_title`"),
    "Timeout": Key(0, "`[[destinations]] connect_seconds` and `response_seconds`"),
    "AllowEcho": Key(True, "`[[peers]] allow`"),
    "AllowStore": Key(True, "`[[peers]] allow`"),
}
"""Of an object in `DicomModalities`."""

MODALITY_WITHOUT_EFFECT: Final = frozenset({
    *("Manufacturer", "AllowTranscoding", "AllowStorageCommitment", "AllowNAction", "AllowEventReport"),
    *("AllowFind", "AllowFindWorklist", "AllowGet", "AllowMove", "RetrieveMethod"),
})  # fmt: skip

MODALITY_IDLE: Final = {"AllowTranscoding": False}
"""What asks of a modality what is always so."""

NOT_HONOURED: Final = {
    "MaximumPatientCount": (0, "patients are not counted; `[retention]` goes by age and size"),
    "StorageCompression": (False, "files are stored as they came"),
    "StoreDicom": (True, "files are always stored"),
    "IngestTranscoding": (None, "files are stored as they came"),
    "ReadOnly": (False, "a receiving node writes"),
}
"""Keys that say something of receiving and storing which this node does not do: the value (None: none) that
asks for nothing, and why."""

WITHOUT_EFFECT: Final = {
    "the web server and the REST API": (
        "HttpServerEnabled OrthancExplorerEnabled HttpPort HttpDescribeErrors HttpCompressionEnabled "
        "WebDavEnabled WebDavDeleteAllowed WebDavUploadAllowed RemoteAccessAllowed SslEnabled SslCertificate "
        "SslMinimumProtocolVersion SslCiphersAccepted SslVerifyPeers SslTrustedClientCertificates "
        "AuthenticationEnabled RegisteredUsers HttpProxy HttpVerbose HttpTimeout HttpsVerifyPeers "
        "HttpsCACertificates KeepAlive KeepAliveTimeout TcpNoDelay HttpThreadsCount HttpRequestTimeout "
        "RestApiWriteToFileSystemEnabled SynchronousZipStream ZipLoaderThreads MediaArchiveSize "
        "OrthancPeers OrthancPeersInDatabase Pkcs11"
    ),
    "queries, retrieval and storage commitment": (
        "DicomAlwaysAllowFind DicomAlwaysAllowFindWorklist DicomAlwaysAllowGet DicomAlwaysAllowMove "
        "DicomEchoChecksFind LimitFindResults LimitFindInstances QueryRetrieveSize CaseSensitivePN "
        "SynchronousCMove StorageAccessOnFind StorageCommitmentReportsSize DicomDefaultRetrieveMethod"
    ),
    "scripts, plugins and jobs": (
        "LuaScripts LuaHeartBeatPeriod Plugins ConcurrentJobs JobsHistorySize SaveJobs "
        "JobsEngineThreadsCount ExecuteLuaEnabled DicomAssociationCloseDelay LogExportedResources LimitJobs"
    ),
    "transcoding and pixels": (
        "DicomScuPreferredTransferSyntax TranscodeDicomProtocol BuiltinDecoderTranscoderOrder "
        "IngestTranscodingOfUncompressed IngestTranscodingOfCompressed DicomLossyTranscodingQuality "
        "MaximumConcurrentDcmtkTranscoders"
    ),
    "the index, dictionaries and attachments": (
        "IndexDirectory TemporaryDirectory MaximumStorageCacheSize DefaultEncoding UserMetadata "
        "UserContentType StoreMD5ForAttachments LoadPrivateDictionary Locale Dictionary ExternalDictionaries "
        "DefaultPrivateCreator CheckRevisions DatabaseServerIdentifier ExtraMainDicomTags PatientLevelEnabled"
    ),
    "memory, logs and metrics": (
        "MallocArenaMax DeidentifyLogs DeidentifyLogsDicomVersion MetricsEnabled Warnings"
    ),
    "plugins of their own": (
        "DicomWeb PostgreSQL MySQL Odbc Worklists ServeFolders Authorization Gdcm Housekeeper "
        "DelayedDeletion ConnectivityChecks MultitenantDicom OrthancExplorer2 WebViewer StoneWebViewer "
        "Transfers AwsS3Storage AzureBlobStorage GoogleCloudStorage PythonScript PythonVerbose Tcia VolView "
        "OHIF AdvancedStorage"
    ),
}
"""Known keys that mean nothing here, by what they are about."""

ALIASES: Final = {"RejectSopClasses": "RejectedSopClasses"}
"""Orthanc 1.12.6 spelt it so, and its later releases still read it."""


def without_effect() -> frozenset[str]:
    """All names of `WITHOUT_EFFECT`."""
    return frozenset(name for names in WITHOUT_EFFECT.values() for name in names.split())
