/** What every page has: htmx, and the small parts that README.md describes. */

import "htmx.org";
