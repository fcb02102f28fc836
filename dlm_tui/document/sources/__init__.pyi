from .describe import describe_for_show as describe_for_show
from .describe import describe_scan as describe_scan
from .scan import FileOutcome as FileOutcome
from .scan import ScanMemory as ScanMemory
from .scan import SourceCounts as SourceCounts
from .scan import SourceScan as SourceScan
from .scan import SourceSection as SourceSection
from .scan import expand_sources as expand_sources
