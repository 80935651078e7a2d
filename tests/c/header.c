/* The public header on its own, compiled under every standard; with BROKEN, to see that warnings are errors. */

#include <smolvlm.h>

#ifdef BROKEN
static int unused;
#endif

int use(void);

int use(void) {
    return SMOLVLM_STATUS_OK;
}
