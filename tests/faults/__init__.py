# SPDX-License-Identifier: BSD-3-Clause
"""What breaks a running site, and what judges that nothing was lost, doubled or left behind."""
