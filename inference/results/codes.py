"""The codes in our objects (PS3.16): a table that encoders and gate share."""

from __future__ import annotations

from inference.finding import Laterality

Code = tuple[str, str, str]  # value, scheme, meaning

# The finding and its place: SR and SEG
MORPHOLOGICALLY_ABNORMAL = ("49755003", "SCT", "Morphologically Abnormal Structure")
PNEUMOTHORAX = ("36118008", "SCT", "Pneumothorax")
LUNG = ("39607008", "SCT", "Lung")
SIDES: dict[Laterality, Code] = {
    "R": ("24028007", "SCT", "Right"),
    "L": ("7771000", "SCT", "Left"),
    "B": ("51440002", "SCT", "Right and left"),
}
ARTIFICIAL_INTELLIGENCE = ("123110", "DCM", "Artificial Intelligence")

# TID 1500, 1001, 1004, 1204: the document and its context
REPORT = ("126000", "DCM", "Imaging Measurement Report")
# For a report that measures nothing: OHIF 3.13 takes the first measurement of every report of the
# other title, and its viewport goes black without it. CID 7021 may be extended.
REPORT_WITHOUT_MEASUREMENTS = ("112000", "DCM", "Chest CAD Report")
LANGUAGE = ("121049", "DCM", "Language of Content Item and Descendants")
ENGLISH = ("en", "RFC5646", "English")
OBSERVER_TYPE = ("121005", "DCM", "Observer Type")
DEVICE = ("121007", "DCM", "Device")
DEVICE_UID = ("121012", "DCM", "Device Observer UID")
DEVICE_NAME = ("121013", "DCM", "Device Observer Name")
DEVICE_MANUFACTURER = ("121014", "DCM", "Device Observer Manufacturer")
DEVICE_MODEL = ("121015", "DCM", "Device Observer Model Name")
DEVICE_SERIAL = ("121016", "DCM", "Device Observer Serial Number")
PROCEDURE = ("121058", "DCM", "Procedure reported")
CHEST_XRAY = ("399208008", "SCT", "Plain chest X-ray")
MEASUREMENTS = ("126010", "DCM", "Imaging Measurements")
EVALUATIONS = ("C0034375", "UMLS", "Qualitative Evaluations")
COMMENT = ("121106", "DCM", "Comment")

# TID 1600 to 1603: the image library
LIBRARY = ("111028", "DCM", "Image Library")
LIBRARY_GROUP = ("126200", "DCM", "Image Library Group")
MODALITY = ("121139", "DCM", "Modality")
MODALITIES = {
    "CR": ("CR", "DCM", "Computed Radiography"),
    "DX": ("DX", "DCM", "Digital Radiography"),
}
TARGET_REGION = ("123014", "DCM", "Target Region")
CHEST = ("816094009", "SCT", "Chest")
PIXEL_ROWS = ("110910", "DCM", "Pixel Data Rows")
PIXEL_COLUMNS = ("110911", "DCM", "Pixel Data Columns")
ORIENTATION_ROW = ("111044", "DCM", "Patient Orientation Row")
ORIENTATION_COLUMN = ("111043", "DCM", "Patient Orientation Column")
HORIZONTAL_SPACING = ("111026", "DCM", "Horizontal Pixel Spacing")
VERTICAL_SPACING = ("111066", "DCM", "Vertical Pixel Spacing")

# TID 1410, 1419, 4019: a lesion
GROUP = ("125007", "DCM", "Measurement Group")
TRACKING_ID = ("112039", "DCM", "Tracking Identifier")
TRACKING_UID = ("112040", "DCM", "Tracking Unique Identifier")
FINDING = ("121071", "DCM", "Finding")
FINDING_SITE = ("363698007", "SCT", "Finding Site")
LATERALITY = ("272741003", "SCT", "Laterality")
ALGORITHM = ("111001", "DCM", "Algorithm Name")
ALGORITHM_VERSION = ("111003", "DCM", "Algorithm Version")
ALGORITHM_PARAMETERS = ("111002", "DCM", "Algorithm Parameters")
SOURCE = ("260753009", "SCT", "Source")
REGION = ("111030", "DCM", "Image Region")
SEGMENTATION_FRAME = ("121214", "DCM", "Referenced Segmentation Frame")
SEGMENTATION_SOURCE = ("121233", "DCM", "Source image for segmentation")
CERTAINTY = ("111012", "DCM", "Certainty of Finding")
AREA = ("131184002", "SCT", "Area of defined region")
DERIVATION = ("121401", "DCM", "Derivation")
ESTIMATED = ("414135002", "SCT", "Estimated")
PRESENT = ("52101004", "SCT", "Present")
ABSENT = ("272519000", "SCT", "Absent")

PERCENT = ("%", "UCUM", "percent")
PIXELS = ("{pixels}", "UCUM", "pixels")
MM2 = ("mm2", "UCUM", "square millimeter")
MM = ("mm", "UCUM", "millimeter")

# Equipment and images
PROCESSING_EQUIPMENT = ("109102", "DCM", "Processing Equipment")
SEGMENTATION = ("113076", "DCM", "Segmentation")
RESAMPLING = ("113085", "DCM", "Spatial resampling")
LOSSY_COMPRESSION = ("113040", "DCM", "Lossy Compression")
SOURCE_IMAGE = ("121322", "DCM", "Source image for image processing operation")


def every() -> frozenset[Code]:
    """Every code of this module."""
    single = {value for value in globals().values() if isinstance(value, tuple) and len(value) == 3}
    return frozenset(single | {*SIDES.values()} | {*MODALITIES.values()})
