// The public C++ header on its own, compiled under every standard; with BROKEN, to see that warnings are errors.

#include <smolvlm.hpp>

#ifdef BROKEN
static int unused;
#endif
