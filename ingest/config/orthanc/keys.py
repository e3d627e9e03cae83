"""The keys of Orthanc's configuration, with Orthanc's defaults and their meaning for this node.

The sources are the configuration that Orthanc writes (`Orthanc --config=FILE`) and its releases up to
1.12.10.
docs/reference/orthanc.md has the same table. Tests compare the two, and this one with an installed Orthanc.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class HonouredKey:
    """An Orthanc key that this node honours.

    Attributes:
        default: Orthanc's default; None if it has none.
        becomes: Our key that it sets.
    """

    default: bool | int | str | tuple[str, ...] | None
    becomes: str


HONOURED_KEYS: Final = {
    "Name": HonouredKey("MyOrthanc", "`[node] name`"),
    "DicomAet": HonouredKey("ORTHANC", "`[node] ae_title`"),
    "StorageDirectory": HonouredKey("OrthancStorage", "`[node] data_dir`"),
    "DicomServerEnabled": HonouredKey(True, "a `[[listeners]]`, or none"),
    "DicomPort": HonouredKey(4242, "`[[listeners]] port`"),
    "DicomTlsEnabled": HonouredKey(False, "`[[listeners]] tls`"),
    "DicomTlsCertificate": HonouredKey(None, "`[tls.orthanc] certificate`"),
    "DicomTlsPrivateKey": HonouredKey(None, "`[tls.orthanc] private_key`"),
    "DicomTlsTrustedCertificates": HonouredKey(None, "`[tls.orthanc] trusted`"),
    "DicomTlsRemoteCertificateRequired": HonouredKey(True, "`[tls.orthanc] peer_certificate`"),
    "DicomTlsMinimumProtocolVersion": HonouredKey(0, "`[tls.orthanc] profile` or `minimum_version`"),
    "DicomTlsCiphersAccepted": HonouredKey((), "`[tls.orthanc] ciphers`"),
    "DicomCheckCalledAet": HonouredKey(False, "`[receive] check_called_ae`"),
    "StrictAetComparison": HonouredKey(False, "`[receive] ignore_ae_title_case`, the other way round"),
    "UnknownSopClassAccepted": HonouredKey(False, "`[receive] accept_unknown_sop_classes`"),
    "AcceptedSopClasses": HonouredKey((), "`[receive] sop_classes`"),
    "RejectedSopClasses": HonouredKey((), "`[receive] rejected_sop_classes`"),
    "AcceptedTransferSyntaxes": HonouredKey(("1.2.840.10008.1.*",), "`[receive] transfer_syntaxes`"),
    "DeflatedTransferSyntaxAccepted": HonouredKey(True, "`[receive] transfer_syntaxes`"),
    "JpegTransferSyntaxAccepted": HonouredKey(True, "`[receive] transfer_syntaxes`"),
    "Jpeg2000TransferSyntaxAccepted": HonouredKey(True, "`[receive] transfer_syntaxes`"),
    "JpegLosslessTransferSyntaxAccepted": HonouredKey(True, "`[receive] transfer_syntaxes`"),
    "JpipTransferSyntaxAccepted": HonouredKey(True, "`[receive] transfer_syntaxes`"),
    "Mpeg2TransferSyntaxAccepted": HonouredKey(True, "`[receive] transfer_syntaxes`"),
    "Mpeg4TransferSyntaxAccepted": HonouredKey(True, "`[receive] transfer_syntaxes`"),
    "RleTransferSyntaxAccepted": HonouredKey(True, "`[receive] transfer_syntaxes`"),
    "H265TransferSyntaxAccepted": HonouredKey(True, "`[receive] transfer_syntaxes`"),
    "MaximumPduLength": HonouredKey(16384, "`[receive] max_pdu_length`"),
    "DicomThreadsCount": HonouredKey(4, "`[receive] processes`"),
    "DicomScpTimeout": HonouredKey(30, "`[receive] idle_seconds`"),
    "SyncStorageArea": HonouredKey(True, "`[receive] durability`"),
    "OverwriteInstances": HonouredKey(False, "`[store] duplicates`"),
    "MaximumStorageSize": HonouredKey(0, "`[retention] max_bytes`"),
    "MaximumStorageMode": HonouredKey("Recycle", "`[retention] at_max_bytes`"),
    "StableAge": HonouredKey(60, "`[node] stable_seconds`"),
    "DicomAlwaysAllowEcho": HonouredKey(True, "`[[peers]] allow`"),
    "DicomAlwaysAllowStore": HonouredKey(True, "`[[peers]] allow`"),
    "DicomCheckModalityHost": HonouredKey(False, "`[[peers]] hosts`"),
    "DicomModalities": HonouredKey(None, "`[[destinations]]` and `[[peers]]`"),
    "DicomModalitiesInDatabase": HonouredKey(False, "no `[[destinations]]` if it is true"),
    "DicomScuTimeout": HonouredKey(10, "`[[destinations]] connect_seconds` and `response_seconds`"),
}

MODALITY_KEYS: Final = {
    "AET": HonouredKey(None, "`ae_title` of both"),
    "Host": HonouredKey(None, "`[[destinations]] host`, `[[peers]] hosts`"),
    "Port": HonouredKey(None, "`[[destinations]] port`"),
    "UseDicomTls": HonouredKey(False, "`[[destinations]] tls`"),
    "LocalAet": HonouredKey("", "`[[destinations]] calling_ae_title`"),
    "Timeout": HonouredKey(0, "`[[destinations]] connect_seconds` and `response_seconds`"),
    "AllowEcho": HonouredKey(True, "`[[peers]] allow`"),
    "AllowStore": HonouredKey(True, "`[[peers]] allow`"),
}
"""Keys of an object in `DicomModalities`."""

MODALITY_KEYS_WITHOUT_EFFECT: Final = frozenset({
    *("Manufacturer", "AllowTranscoding", "AllowStorageCommitment", "AllowNAction", "AllowEventReport"),
    *("AllowFind", "AllowFindWorklist", "AllowGet", "AllowMove", "RetrieveMethod"),
})  # fmt: skip

MODALITY_MATCHING_VALUES: Final = {"AllowTranscoding": False}
"""Values of a modality's keys that ask for what this node always does."""

UNSUPPORTED_KEYS: Final = {
    "MaximumPatientCount": (0, "patients are not counted; `[retention]` goes by age and size"),
    "StorageCompression": (False, "files are stored as they came"),
    "StoreDicom": (True, "files are always stored"),
    "IngestTranscoding": (None, "files are stored as they came"),
    "ReadOnly": (False, "a receiving node writes"),
}
"""Keys about receiving and storing that this node does not support.

Each has the value that asks for nothing (None: there is none), and the reason.
"""

KEYS_WITHOUT_EFFECT: Final = {
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
"""Known keys that mean nothing to this node, by their subject."""

ALIASES: Final = {"RejectSopClasses": "RejectedSopClasses"}
"""Spellings of Orthanc 1.12.6 that later releases still read."""


def list_keys_without_effect() -> frozenset[str]:
    """Return all names of `KEYS_WITHOUT_EFFECT`."""
    return frozenset(name for names in KEYS_WITHOUT_EFFECT.values() for name in names.split())
